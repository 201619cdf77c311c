"""One SDK each: translates values and errors, decides nothing."""
