"""Training: the two loops, and what they share (fabric, session, checkpoints, schedules). The only room with ranks."""
