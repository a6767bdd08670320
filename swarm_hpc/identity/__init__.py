"""Who a node is: certificates, trust bundles, and the check of names inside TLS handshakes."""
