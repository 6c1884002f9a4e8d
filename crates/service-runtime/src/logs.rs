use tracing_subscriber::EnvFilter;

/// Starts logging: JSON lines on standard error, at the level in the environment variable `CONSTELLATION_LOG`, or else info.
pub fn start_logging() {
    let filter = EnvFilter::try_from_env("CONSTELLATION_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
}
