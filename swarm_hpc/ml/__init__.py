"""The ML side: SwarmCallback for each framework, and what all of them share."""
