"""What nodes say to each other: JSON calls and blobs over HTTP/1.1 with mutual TLS."""
