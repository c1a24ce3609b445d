"""HTTP below the application: connections and their limits, the listener, middleware."""
