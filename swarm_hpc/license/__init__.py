"""Seats: how many nodes a consortium may train with, from a signed file, handed out by one server. Off by default."""
