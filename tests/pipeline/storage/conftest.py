from tests.faulty_store import faulty  # noqa: F401
