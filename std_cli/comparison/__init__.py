"""Stylizations measured and set side by side: `std compare`."""
