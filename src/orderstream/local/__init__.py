"""Everything that `orderstream up` starts on one machine, and how it is started, watched and stopped."""
