use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use programs::{Call, Programs, RunError};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::info;

/// Importing the largest image takes an emulated machine half a minute.
const LIMIT: Duration = Duration::from_secs(10 * 60);
/// Unpacking layers keeps a processor busy.
const CONCURRENT_IMPORTS: usize = 2;
const ARCHIVE_SUFFIX: &str = ".oci.tar";

/// Container images could not be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The folder cannot be read.
    #[error("cannot read {folder}, the folder of image archives")]
    Folder {
        /// Path of the folder with the archives.
        folder: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// containerd did not accept an image.
    #[error("cannot import image archive {archive}")]
    Import {
        /// Path of the archive.
        archive: String,
        /// How containerd's client failed.
        #[source]
        source: RunError,
    },
}

/// Imports every `*.oci.tar` of a folder into containerd, where kubelet looks for images. A missing folder has none.
///
/// # Errors
/// When the folder cannot be read or containerd does not accept an archive.
///
/// # Cancel safety
/// Dropping the future ends the imports; they can be repeated.
pub async fn import_images(programs: &Arc<dyn Programs>, folder: &Path) -> Result<(), ImportError> {
    let archives = archives(folder).map_err(|source| ImportError::Folder {
        folder: folder.display().to_string(),
        source,
    })?;
    let count = archives.len();
    let slots = Arc::new(Semaphore::new(CONCURRENT_IMPORTS));
    let mut imports = JoinSet::new();
    for archive in archives {
        imports.spawn(import(programs.clone(), slots.clone(), archive));
    }
    while let Some(imported) = imports.join_next().await {
        imported.expect("importing does not panic")?;
    }
    info!(folder = %folder.display(), images = count, "images imported");
    Ok(())
}

fn archives(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut archives = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.to_string_lossy().ends_with(ARCHIVE_SUFFIX) {
            archives.push(path);
        }
    }
    archives.sort();
    Ok(archives)
}

async fn import(programs: Arc<dyn Programs>, slots: Arc<Semaphore>, archive: PathBuf) -> Result<(), ImportError> {
    let _slot = slots.acquire_owned().await.expect("the semaphore is never closed");
    let archive = archive.display().to_string();
    let call = Call::new("ctr")
        .args(["--namespace", "k8s.io", "images", "import"])
        .arg(&archive)
        .within(LIMIT);
    programs
        .run(&call)
        .await
        .map(drop)
        .map_err(|source| ImportError::Import { archive, source })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use programs::{Output, Running};

    use super::*;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<String>>);

    impl Programs for Recorder {
        fn run<'a>(&'a self, call: &'a Call) -> Running<'a> {
            self.0.lock().unwrap().push(format!("{call:?}"));
            Box::pin(async { Ok(Output::default()) })
        }
    }

    #[tokio::test]
    async fn only_archives_are_imported() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["etcd.oci.tar", "pause.oci.tar", "README"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let recorder = Arc::new(Recorder::default());
        let programs: Arc<dyn Programs> = recorder.clone();
        import_images(&programs, folder.path()).await.unwrap();
        import_images(&programs, Path::new("/nowhere")).await.unwrap();
        let mut calls = recorder.0.lock().unwrap().clone();
        calls.sort();
        let call = |name: &str| {
            format!(
                "ctr --namespace k8s.io images import {}",
                folder.path().join(name).display()
            )
        };
        assert_eq!(calls, [call("etcd.oci.tar"), call("pause.oci.tar")]);
    }
}
