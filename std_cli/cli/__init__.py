"""What the user types and sees; nothing below imports it."""
