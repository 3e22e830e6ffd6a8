"""What lasts: the ledger (answers, jobs, spend), atomic files, and the run directory."""
