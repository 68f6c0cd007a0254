"""What a user submits. Each script is one job; the other modules are stages that jobs share."""
