"""Taking a contributor out of a merge: from the ledger (``run.py``), by sites (``remove.py``) or by subtraction."""
