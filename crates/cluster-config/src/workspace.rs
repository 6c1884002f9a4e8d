use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use atomic_file::Access;
use backon::{BlockingRetryable, ConstantBuilder};
use digest::Digest;
use error_report::{explain_denied, explain_denied_in};
use key_derivation::{MasterSecret, ParseMasterSecretError};
use rustix::fs::FlockOperation;
use zeroize::Zeroizing;

use crate::{ClusterConfig, ClusterState, ParseConfigError, ParseStateError, names};

/// A program that a killed command was just starting holds the command's lock for a moment.
const LOCK_DELAYS: ConstantBuilder = ConstantBuilder::new()
    .with_delay(Duration::from_millis(100))
    .with_max_times(10);

/// The folder that holds the files of one cluster.
#[derive(Clone, Debug)]
pub struct Workspace {
    folder: PathBuf,
}

/// While it is held, no other command changes the workspace.
#[derive(Debug)]
pub struct WorkspaceLock(#[expect(dead_code, reason = "holding it is its purpose")] File);

/// A file of the workspace could not be used.
#[derive(Debug, thiserror::Error)]
pub enum WorkspaceError {
    /// The folder is not there.
    #[error("the workspace {0} does not exist or is not a folder; create it, or choose another with --workspace")]
    Folder(PathBuf),
    /// Configuration and state, which are text, could not name files in it.
    #[error("the path of the workspace, {0:?}, is not valid UTF-8")]
    NotUtf8(PathBuf),
    /// Another command is running.
    #[error("another constellation command is running in {0}; wait for it to finish, then try again")]
    Busy(PathBuf),
    /// A required file is missing.
    #[error("{path} does not exist: {hint}")]
    Missing {
        /// Path of the file or folder.
        path: PathBuf,
        /// How to create it.
        hint: &'static str,
    },
    /// A file already exists and would be overwritten.
    #[error("{0} already exists and is not overwritten")]
    Exists(PathBuf),
    /// A file that would be replaced or removed belongs to the user.
    #[error("{0} was not written for this cluster, or has been changed since")]
    Foreign(PathBuf),
    /// A file that should be text is not.
    #[error("{0} is not text in UTF-8")]
    NotText(PathBuf),
    /// Reading or writing failed.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Path of the file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The configuration cannot be used.
    #[error("invalid configuration {path}")]
    Config {
        /// Path of the file or folder.
        path: PathBuf,
        /// Where the text is not a configuration, and why.
        #[source]
        source: ParseConfigError,
    },
    /// The state cannot be used.
    #[error("{path} is damaged (restore it from a backup, or terminate the cluster with `constellation terminate`)")]
    State {
        /// Path of the file or folder.
        path: PathBuf,
        /// Where the text is not a state, and why.
        #[source]
        source: ParseStateError,
    },
    /// The state is one of another build.
    #[error("{path} belongs to a cluster of another build: terminate it with the build that created it")]
    OtherState {
        /// Path of the file or folder.
        path: PathBuf,
        /// Which version it has.
        #[source]
        source: ParseStateError,
    },
    /// What is to become the state could not be read again.
    #[error("{path} stays as it is: what would replace it could not be read again")]
    Unreadable {
        /// Path of the file or folder.
        path: PathBuf,
        /// Where the text would not be a state, and why.
        #[source]
        source: ParseStateError,
    },
    /// The master secret cannot be used.
    #[error("{path} is damaged (restore it from a backup)")]
    MasterSecret {
        /// Path of the file or folder.
        path: PathBuf,
        /// How the text differs from a master secret.
        #[source]
        source: ParseMasterSecretError,
    },
}

impl Workspace {
    /// Takes an existing folder.
    ///
    /// # Errors
    /// When there is none, or its path is not UTF-8.
    pub fn open(folder: &Path) -> Result<Self, WorkspaceError> {
        match folder.canonicalize() {
            Ok(real) if !real.is_dir() => Err(WorkspaceError::Folder(folder.to_owned())),
            Ok(real) if real.to_str().is_none() => Err(WorkspaceError::NotUtf8(real)),
            Ok(folder) => Ok(Self { folder }),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(WorkspaceError::Io {
                action: "open",
                path: folder.to_owned(),
                source: explain_denied(folder, error),
            }),
            Err(_) => Err(WorkspaceError::Folder(folder.to_owned())),
        }
    }

    /// Keeps other commands out while the result lives. The kernel releases it with the process.
    ///
    /// # Errors
    /// When another command is still running after a second.
    pub fn lock(&self) -> Result<WorkspaceLock, WorkspaceError> {
        // The folder itself is locked, so no lock file is left behind.
        let folder = File::open(&self.folder).map_err(|error| self.io_error("open", &self.folder, error))?;
        let lock = || rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive);
        let lock = lock
            .retry(LOCK_DELAYS)
            .when(|error| *error == rustix::io::Errno::WOULDBLOCK);
        match lock.call() {
            Ok(()) => Ok(WorkspaceLock(folder)),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(WorkspaceError::Busy(self.folder.clone())),
            Err(error) => Err(self.io_error("lock", &self.folder, error.into())),
        }
    }

    /// Whether another command changes the workspace at this moment.
    ///
    /// # Errors
    /// When the folder cannot be opened.
    pub fn is_busy(&self) -> Result<bool, WorkspaceError> {
        let folder = File::open(&self.folder).map_err(|error| self.io_error("open", &self.folder, error))?;
        // Shared, so that those who only look do not see each other. It ends with this function; a command that begins meanwhile retries.
        match rustix::fs::flock(&folder, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(false),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
            Err(error) => Err(self.io_error("lock", &self.folder, error.into())),
        }
    }

    /// The folder, as an absolute path.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The absolute path of one of the [`names`].
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Whether the file with one of the [`names`] exists; a symbolic link counts, even a dangling one, whose target may come back.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn has(&self, name: &str) -> Result<bool, WorkspaceError> {
        let path = self.path(name);
        match fs::symlink_metadata(&path) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(self.io_error("inspect", &path, error)),
        }
    }

    /// Reads the configuration.
    ///
    /// # Errors
    /// When there is none or it is not valid.
    pub fn config(&self) -> Result<ClusterConfig, WorkspaceError> {
        let path = self.path(names::CONFIG);
        let text = self.read(names::CONFIG)?.ok_or_else(|| WorkspaceError::Missing {
            path: path.clone(),
            hint: "write one with `constellation config generate qemu`",
        })?;
        ClusterConfig::parse(&text, &self.folder).map_err(|source| WorkspaceError::Config { path, source })
    }

    /// Writes a configuration where there is none.
    ///
    /// # Errors
    /// When there is one.
    pub fn create_config(&self, text: &str) -> Result<PathBuf, WorkspaceError> {
        let path = self.path(names::CONFIG);
        if self.has(names::CONFIG)? {
            return Err(WorkspaceError::Exists(path));
        }
        self.replace(names::CONFIG, text.as_bytes(), Access::Everyone)?;
        Ok(path)
    }

    /// Reads the state, if there is any.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn state(&self) -> Result<Option<ClusterState>, WorkspaceError> {
        let parse = |text: Zeroizing<String>| {
            let path = || self.path(names::STATE);
            ClusterState::parse(&text).map_err(|source| match source {
                ParseStateError::Version { .. } => WorkspaceError::OtherState { path: path(), source },
                source => WorkspaceError::State { path: path(), source },
            })
        };
        self.read(names::STATE)?.map(parse).transpose()
    }

    /// Replaces the state.
    ///
    /// # Errors
    /// When it could not be read again, or the folder cannot be written to.
    pub fn save_state(&self, state: &ClusterState) -> Result<(), WorkspaceError> {
        let text = state.to_yaml();
        // Without a state that can be read, no command can use the cluster any more.
        ClusterState::parse(&text).map_err(|source| WorkspaceError::Unreadable {
            path: self.path(names::STATE),
            source,
        })?;
        self.replace(names::STATE, text.as_bytes(), Access::Owner)
    }

    /// Reads the master secret.
    ///
    /// # Errors
    /// When there is none or it cannot be read.
    pub fn master_secret(&self) -> Result<MasterSecret, WorkspaceError> {
        let path = self.path(names::MASTER_SECRET);
        let text = self
            .read(names::MASTER_SECRET)?
            .ok_or_else(|| WorkspaceError::Missing {
                path: path.clone(),
                hint: "it was written when the cluster was created; without it the cluster's keys cannot be derived; restore it \
                       from a backup",
            })?;
        MasterSecret::parse(text.as_bytes()).map_err(|source| WorkspaceError::MasterSecret { path, source })
    }

    /// Reads the master secret, or generates and stores one. The second value says whether it is new.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub fn master_secret_or_new(&self) -> Result<(MasterSecret, bool), WorkspaceError> {
        if self.has(names::MASTER_SECRET)? {
            return Ok((self.master_secret()?, false));
        }
        let secret = MasterSecret::generate();
        self.replace(names::MASTER_SECRET, secret.to_json().as_bytes(), Access::Owner)?;
        Ok((secret, true))
    }

    /// Reads the administrator's kubeconfig.
    ///
    /// # Errors
    /// When there is none or it cannot be read.
    pub fn admin_conf(&self) -> Result<Zeroizing<String>, WorkspaceError> {
        self.read(names::ADMIN_CONF)?.ok_or_else(|| WorkspaceError::Missing {
            path: self.path(names::ADMIN_CONF),
            hint: "it is written when the cluster is created; restore it from a backup",
        })
    }

    /// Writes a file that belongs to the cluster. One that belongs to the user is not touched.
    ///
    /// It is recorded as ours before it exists, so a crash in between leaves nothing that no command removes.
    ///
    /// # Errors
    /// When the file belongs to the user, or the folder cannot be written to.
    pub fn write_own(
        &self,
        state: &mut ClusterState,
        name: &str,
        bytes: &[u8],
        access: Access,
    ) -> Result<(), WorkspaceError> {
        self.remove_own(state, name)?;
        state.files.insert(name.to_owned(), Digest::of(bytes));
        self.save_state(state)?;
        self.replace(name, bytes, access)
    }

    /// Replaces the content of a file that belongs to the cluster. There is one at every moment, and a replacement that was
    /// interrupted can be repeated.
    ///
    /// # Errors
    /// When the file belongs to the user, or the folder cannot be written to.
    pub fn replace_own(
        &self,
        state: &mut ClusterState,
        name: &str,
        (old, new): (&[u8], &[u8]),
        access: Access,
    ) -> Result<(), WorkspaceError> {
        let is_ours = |content| state.files.get(name) == Some(&Digest::of(content));
        if !is_ours(old) && !is_ours(new) {
            return Err(WorkspaceError::Foreign(self.path(name)));
        }
        state.files.insert(name.to_owned(), Digest::of(new));
        self.save_state(state)?;
        self.replace(name, new, access)
    }

    /// Removes a file that belongs to the cluster, if it is there. One that belongs to the user is not touched.
    ///
    /// # Errors
    /// When the file belongs to the user, or the folder cannot be written to.
    pub fn remove_own(&self, state: &ClusterState, name: &str) -> Result<(), WorkspaceError> {
        self.check_own(state, name)?;
        if state.files.contains_key(name) {
            self.remove(name)?;
        }
        Ok(())
    }

    /// Whether a file is there and belongs to the cluster.
    ///
    /// # Errors
    /// When the file belongs to the user, or cannot be read.
    pub fn check_own(&self, state: &ClusterState, name: &str) -> Result<bool, WorkspaceError> {
        if !self.has(name)? {
            return Ok(false);
        }
        let path = self.path(name);
        let content = Zeroizing::new(fs::read(&path).map_err(|error| self.io_error("read", &path, error))?);
        match state.files.get(name) {
            Some(recorded) if *recorded == Digest::of(&content) => Ok(true),
            _ => Err(WorkspaceError::Foreign(path)),
        }
    }

    /// Replaces a file as a whole.
    fn replace(&self, name: &str, bytes: &[u8], access: Access) -> Result<(), WorkspaceError> {
        let path = self.path(name);
        atomic_file::replace(&path, bytes, access).map_err(|error| self.io_error("write", &path, error))
    }

    /// Removes the state, and what a crash left of writing it.
    ///
    /// # Errors
    /// When the folder cannot be written to.
    pub fn remove_state(&self) -> Result<(), WorkspaceError> {
        self.remove(names::STATE)
    }

    fn remove(&self, name: &str) -> Result<(), WorkspaceError> {
        let path = self.path(name);
        atomic_file::remove(&path).map_err(|error| self.io_error("remove", &path, error))
    }

    fn read(&self, name: &str) -> Result<Option<Zeroizing<String>>, WorkspaceError> {
        let path = self.path(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(Zeroizing::new(text))),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !self.has(name)? => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(WorkspaceError::NotText(path)),
            Err(error) => Err(self.io_error("read", &path, error)),
        }
    }

    fn io_error(&self, action: &'static str, path: &Path, source: io::Error) -> WorkspaceError {
        WorkspaceError::Io {
            action,
            path: path.to_owned(),
            source: explain_denied_in(&self.folder, path, source),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn workspace() -> (tempfile::TempDir, Workspace) {
        let folder = tempfile::tempdir().unwrap();
        let workspace = Workspace::open(folder.path()).unwrap();
        (folder, workspace)
    }

    #[test]
    fn files_with_secrets_have_mode_0600() {
        let (_folder, workspace) = workspace();
        workspace.save_state(&ClusterState::new()).unwrap();
        workspace.master_secret_or_new().unwrap();
        for name in [names::STATE, names::MASTER_SECRET] {
            let mode = fs::metadata(workspace.path(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
    }

    #[test]
    fn a_state_that_could_not_be_read_again_replaces_none() {
        let (_folder, workspace) = workspace();
        let mut state = ClusterState::new();
        workspace.save_state(&state).unwrap();
        let before = fs::read(workspace.path(names::STATE)).unwrap();
        state.members = (0..100_000).map(|n| format!("worker-{n}").parse().unwrap()).collect();
        let saved = workspace.save_state(&state);
        assert!(matches!(saved, Err(WorkspaceError::Unreadable { .. })), "{saved:?}");
        assert!(
            workspace
                .write_own(&mut state, names::TIMINGS, b"", Access::Everyone)
                .is_err()
        );
        assert_eq!(fs::read(workspace.path(names::STATE)).unwrap(), before);
        workspace.state().unwrap().unwrap();
    }

    #[test]
    fn the_master_secret_is_made_once() {
        let (_folder, workspace) = workspace();
        let (first, new) = workspace.master_secret_or_new().unwrap();
        let (second, new_again) = workspace.master_secret_or_new().unwrap();
        assert!(new && !new_again);
        assert_eq!(first.expose_key(), second.expose_key());
    }

    #[test]
    fn a_configuration_is_never_overwritten() {
        let (_folder, workspace) = workspace();
        workspace.create_config("first").unwrap();
        assert!(matches!(
            workspace.create_config("second"),
            Err(WorkspaceError::Exists(_))
        ));
    }

    /// The disk with the real file may be mounted later.
    #[test]
    fn a_link_that_leads_nowhere_is_never_overwritten() {
        let (_folder, workspace) = workspace();
        for name in [names::CONFIG, names::STATE, names::MASTER_SECRET, names::TIMINGS] {
            std::os::unix::fs::symlink("/nonexistent/file", workspace.path(name)).unwrap();
        }
        assert!(matches!(workspace.create_config("x"), Err(WorkspaceError::Exists(_))));
        assert!(matches!(workspace.state(), Err(WorkspaceError::Io { .. })));
        assert!(workspace.master_secret_or_new().is_err());
        let written = workspace.write_own(&mut ClusterState::new(), names::TIMINGS, b"", Access::Everyone);
        assert!(matches!(written, Err(WorkspaceError::Io { .. })), "{written:?}");
    }

    #[test]
    fn only_what_was_recorded_and_not_changed_is_replaced_or_removed() {
        let (_folder, workspace) = workspace();
        let path = workspace.path(names::TIMINGS);
        let mut state = ClusterState::new();
        let foreign = |result| matches!(result, Err(WorkspaceError::Foreign(_)));

        fs::write(&path, "the user's").unwrap();
        assert!(foreign(workspace.write_own(
            &mut state,
            names::TIMINGS,
            b"ours",
            Access::Everyone
        )));
        assert!(foreign(workspace.remove_own(&state, names::TIMINGS)));
        assert_eq!(fs::read(&path).unwrap(), b"the user's");

        fs::remove_file(&path).unwrap();
        for content in ["ours", "ours again"] {
            workspace
                .write_own(&mut state, names::TIMINGS, content.as_bytes(), Access::Everyone)
                .unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
        }
        // What counts is what is stored.
        let state = workspace.state().unwrap().unwrap();
        fs::write(&path, "ours, edited").unwrap();
        assert!(foreign(workspace.remove_own(&state, names::TIMINGS)));
        fs::write(&path, "ours again").unwrap();
        workspace.remove_own(&state, names::TIMINGS).unwrap();
        assert!(!path.exists());
        workspace.remove_own(&state, names::TIMINGS).unwrap();
    }

    #[test]
    fn one_command_at_a_time() {
        let (_folder, workspace) = workspace();
        assert!(!workspace.is_busy().unwrap());
        let held = workspace.lock().unwrap();
        assert!(matches!(workspace.lock(), Err(WorkspaceError::Busy(_))));
        assert!(workspace.is_busy().unwrap());
        drop(held);
        workspace.lock().unwrap();
    }

    #[test]
    fn what_is_missing_is_named_with_the_next_step() {
        let (_folder, workspace) = workspace();
        let error = workspace.config().unwrap_err().to_string();
        assert!(
            error.contains(names::CONFIG) && error.contains("config generate"),
            "{error}"
        );
    }

    #[test]
    fn a_replacement_that_was_interrupted_is_repeated_and_a_foreign_file_stays() {
        let (_folder, workspace) = workspace();
        let mut state = ClusterState::new();
        let (old, new) = (b"old".as_slice(), b"new".as_slice());
        workspace
            .write_own(&mut state, names::ADMIN_CONF, old, Access::Owner)
            .unwrap();
        // What a crash leaves between the state and the file.
        let mut interrupted = workspace.state().unwrap().unwrap();
        interrupted.files.insert(names::ADMIN_CONF.to_owned(), Digest::of(new));
        for mut state in [state, interrupted] {
            workspace.replace(names::ADMIN_CONF, old, Access::Owner).unwrap();
            let replaced = workspace.replace_own(&mut state, names::ADMIN_CONF, (old, new), Access::Owner);
            replaced.unwrap();
            assert_eq!(fs::read(workspace.path(names::ADMIN_CONF)).unwrap(), new);
            let foreign = workspace.replace_own(&mut state, names::ADMIN_CONF, (b"theirs", old), Access::Owner);
            assert!(matches!(foreign, Err(WorkspaceError::Foreign(_))));
            assert_eq!(fs::read(workspace.path(names::ADMIN_CONF)).unwrap(), new);
        }
    }
}
