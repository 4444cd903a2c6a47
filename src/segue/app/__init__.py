"""The page of `segue app`: generate, edit, upsample, look at runs and train in a browser, over the public API alone."""
