//! gRPC over Unix sockets: where a program listens, and how another one on the same machine calls it.
//!
//! Who may connect is decided by the socket's owner and mode. Nothing here is encrypted, because nothing leaves the kernel.

mod places;

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};
use tonic::transport::{Channel, Endpoint, Uri};

pub use places::{Connection, incoming};

/// Listens on the socket that this flag gave, in place of one that an earlier run left there.
///
/// # Errors
/// When it cannot be made.
pub fn listen(flag: &str, socket: &Path, mode: u32) -> Result<UnixListener> {
    let name = socket.display();
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("{flag}: cannot replace {name}"));
        }
        _ => {}
    }
    let listener = UnixListener::bind(socket).with_context(|| format!("{flag}: cannot listen on {name}"))?;
    fs::set_permissions(socket, Permissions::from_mode(mode))
        .with_context(|| format!("{flag}: cannot set the mode of {name}"))?;
    Ok(listener)
}

/// Connects to this socket when the first call is made, and again after it broke. Each call has this limit.
#[must_use]
pub fn channel(socket: &Path, limit: Duration) -> Channel {
    let socket: PathBuf = socket.into();
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
    });
    // Without a name there is no address, and this one is never looked up.
    let endpoint = Endpoint::from_static("http://socket.invalid").timeout(limit);
    endpoint.connect_with_connector_lazy(connector)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_of_an_earlier_run_is_replaced_and_has_its_mode() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        for mode in [0o600, 0o660] {
            let _listener = listen("--socket", &socket, mode).unwrap();
            assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, mode);
            UnixStream::connect(&socket).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_socket_that_cannot_be_made_is_named_with_its_flag() {
        let folder = tempfile::tempdir().unwrap();
        let error = listen("--socket", folder.path(), 0o600).unwrap_err().to_string();
        let path = folder.path().display();
        assert_eq!(error, format!("--socket: cannot replace {path}"));
        let missing = folder.path().join("missing/socket");
        let error = listen("--socket", &missing, 0o600).unwrap_err().to_string();
        assert_eq!(error, format!("--socket: cannot listen on {}", missing.display()));
    }
}
