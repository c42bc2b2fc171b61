"""What runs, audits and attacks leave behind: plain values, written and read as JSON and Parquet."""
