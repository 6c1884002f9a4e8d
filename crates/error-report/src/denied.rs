use std::fmt;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Explains a permission error: who owns the path and what to do. Returns other errors unchanged.
#[must_use]
pub fn explain_denied(path: &Path, error: io::Error) -> io::Error {
    explain(None, path, error)
}

/// Like [`explain_denied`], for a path in a folder that holds only our files, so the advice may be to change its owner.
#[must_use]
pub fn explain_denied_in(folder: &Path, path: &Path, error: io::Error) -> io::Error {
    explain(Some(folder), path, error)
}

fn explain(ours: Option<&Path>, path: &Path, error: io::Error) -> io::Error {
    if error.kind() != io::ErrorKind::PermissionDenied {
        return error;
    }
    let Some((denied, metadata)) = who_denies(path) else {
        return error;
    };
    let denied = Denied {
        is_inside: ours.is_some_and(|folder| denied != folder && denied.starts_with(folder)),
        path: denied.to_owned(),
        owner: User(metadata.uid()),
        mode: metadata.mode() & 0o7777,
    };
    io::Error::new(io::ErrorKind::PermissionDenied, denied)
}

/// A user, as an operator knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User(u32);

impl User {
    /// The user this process runs as; `None` if `/proc` cannot be read.
    #[must_use]
    pub fn current() -> Option<Self> {
        Self::of(Path::new("/proc/self"))
    }

    /// The owner of a file, or of a process by its folder in `/proc`.
    #[must_use]
    pub fn of(path: &Path) -> Option<Self> {
        fs::metadata(path).ok().map(|metadata| Self(metadata.uid()))
    }

    /// How to do something as this user.
    #[must_use]
    pub fn advice(self) -> String {
        match self.0 {
            0 => "run the command with sudo".to_owned(),
            id => format!("run the command as that user (sudo -u '#{id}')"),
        }
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("root"),
            id => write!(f, "user {id}"),
        }
    }
}

#[derive(Debug)]
struct Denied {
    path: PathBuf,
    is_inside: bool,
    owner: User,
    mode: u32,
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            path,
            is_inside,
            owner,
            mode,
        } = self;
        let (path, quoted) = (path.display(), quoted(path));
        match User::current() {
            Some(user) if user != *owner => {
                let advice = owner.advice();
                write!(
                    f,
                    "permission denied: {path} belongs to {owner} and this command runs as {user}; {advice}, or "
                )?;
                if *is_inside {
                    write!(f, "make it yours with `sudo chown -R {} {quoted}`", user.0)
                } else {
                    // It may be anything: a folder of the system, or one that others work in.
                    f.write_str("choose another folder")
                }
            }
            _ => write!(
                f,
                "permission denied: {path} has the mode {mode:04o}; allow its owner to use it with `chmod u+rwX {quoted}`"
            ),
        }
    }
}

/// For a shell. No path holds what cannot be quoted.
fn quoted(path: &Path) -> String {
    let path = path.display().to_string();
    shlex::try_quote(&path).unwrap_or_default().into_owned()
}

impl std::error::Error for Denied {}

/// The file or folder that the permission is missing on: the last on the way to the path that can be looked at, or, if it can
/// be read, the folder it would be written to.
fn who_denies(path: &Path) -> Option<(&Path, Metadata)> {
    let mut way = path.ancestors();
    let (last, metadata) = way.find_map(|place| Some((place, fs::symlink_metadata(place).ok()?)))?;
    match last.parent() {
        Some(parent) if last == path && File::open(last).is_ok() => Some((parent, fs::metadata(parent).ok()?)),
        _ => Some((last, metadata)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explained(path: &Path) -> String {
        explain_denied(path, io::ErrorKind::PermissionDenied.into()).to_string()
    }

    #[test]
    fn the_owner_and_the_way_out_are_told() {
        let text = explained(Path::new("/proc/1/root/nonexistent"));
        assert!(text.contains("/proc/1") && text.contains("permission denied"), "{text}");
    }

    #[test]
    fn only_what_is_inside_our_folder_is_given_away_and_its_path_is_quoted() {
        let own = User::current().unwrap();
        let said = |is_inside| {
            let denied = Denied {
                path: PathBuf::from("/w/a b;reboot"),
                is_inside,
                owner: User(own.0 + 1),
                mode: 0,
            };
            denied.to_string()
        };
        let chown = format!("`sudo chown -R {} '/w/a b;reboot'`", own.0);
        assert!(said(true).ends_with(&chown), "{}", said(true));
        assert!(said(false).ends_with("or choose another folder"), "{}", said(false));
    }

    #[test]
    fn the_folder_itself_and_what_is_above_it_are_not_inside() {
        let missing = Path::new("/proc/1/root/nonexistent");
        for (folder, expected) in [
            ("/proc/1", true),
            ("/proc/1/root", false),
            ("/proc/1/root/nonexistent", false),
        ] {
            let error = explain_denied_in(Path::new(folder), missing, io::ErrorKind::PermissionDenied.into());
            let denied = error.get_ref().and_then(|error| error.downcast_ref::<Denied>());
            assert_eq!(denied.unwrap().is_inside, expected, "{folder}: {error}");
        }
    }

    #[test]
    fn other_errors_stay_as_they_are() {
        let error = explain_denied(Path::new("/"), io::ErrorKind::NotFound.into());
        assert_eq!(error.to_string(), io::Error::from(io::ErrorKind::NotFound).to_string());
    }

    #[test]
    fn users_are_named() {
        assert_eq!(User(0).to_string(), "root");
        assert_eq!(User(1000).to_string(), "user 1000");
        assert_eq!(User::of(Path::new("/proc/1")), Some(User(0)));
        assert!(User(1000).advice().contains("#1000"));
    }
}
