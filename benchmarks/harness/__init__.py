"""What every benchmark does: verify, time, report, and compare with targets."""
