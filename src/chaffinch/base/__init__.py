"""What several families stand on: errors, files, threads, neighbours, mixtures, linear probes."""
