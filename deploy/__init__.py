"""What runs around the mesh: servers of models, and later compose files and cluster manifests."""
