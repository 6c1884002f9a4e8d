//! The record of who requested which key.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde::Serialize;

/// An append-only file of JSON lines.
#[derive(Clone)]
pub(crate) struct AuditLog(Arc<Mutex<File>>);

/// One request. It never holds a key.
#[derive(Debug, Serialize)]
pub(crate) struct Record {
    /// When it was made. The host sets the clock, so this is only a hint.
    pub(crate) time: Timestamp,
    /// The caller, as the API server says.
    pub(crate) caller: String,
    /// The caller's pod, if the token is bound to one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pod: Option<String>,
    /// The id of the key.
    pub(crate) key: String,
    /// Who gets the key, if not the caller itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) recipient: Option<String>,
    /// Whether the caller gets the key.
    pub(crate) decision: Decision,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Decision {
    Granted,
    Denied,
}

impl AuditLog {
    /// Opens the log, or creates it.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)
            .with_context(|| format!("--audit-log: cannot open {}", path.display()))?;
        Ok(Self(Arc::new(Mutex::new(file))))
    }

    /// Returns when the record is on the disk. Only then may a key leave.
    pub(crate) async fn write(&self, record: Record) -> io::Result<()> {
        let mut line = serde_json::to_vec(&record)?;
        line.push(b'\n');
        let file = self.0.clone();
        tokio::task::spawn_blocking(move || {
            let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
            file.write_all(&line)?;
            file.sync_data()
        })
        .await
        .map_err(io::Error::other)?
    }
}
