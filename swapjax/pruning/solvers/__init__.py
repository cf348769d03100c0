"""Mathematics that methods share; no method lives here."""
