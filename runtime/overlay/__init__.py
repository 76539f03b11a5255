"""What lies above the picture: a logo, words, a ticker, a clock, a code, a message that covers everything."""
