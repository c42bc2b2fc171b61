"""The study: what system call isolation does to real calls. `make study` measures and writes docs/study.md."""
