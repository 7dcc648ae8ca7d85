"""Places for results and sources, on a disk or behind any URL that fsspec knows.

`folder` is what others use, and `stored` what they send to workers. Below them: `disk` (durable writes and what refuses
them), `remote` (the only file that imports fsspec), `retries` (what is tried again, and for how long), `cache` (local
copies of remote files), `lease` (who may write to a remote workdir), `content` (hashes and canonical JSON).
"""

from pipeline.storage.content import canonical_json, content_hash
from pipeline.storage.disk import TEMPORARY, explaining, make_folder
from pipeline.storage.folder import Folder
from pipeline.storage.stored import StoredFile

__all__ = ["TEMPORARY", "Folder", "StoredFile", "canonical_json", "content_hash", "explaining", "make_folder"]
