"""Scoring: metrics, statistics, the error ledger, costs and the verdict; pure functions of predictions."""
