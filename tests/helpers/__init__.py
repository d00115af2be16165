"""Programs with known answers, and assertions in standard errors, that test modules share."""
