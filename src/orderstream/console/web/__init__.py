"""What all pages and operations of the console share: access, limits, decoding, problems and templates."""
