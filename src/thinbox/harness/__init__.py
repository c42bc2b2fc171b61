"""A frozen guest, used over and over: what audits and attacks run their cases on."""
