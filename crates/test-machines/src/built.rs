use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// A program that its sources do not make.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotUpToDate {
    #[error("{} is not there ({source})", path.display())]
    Missing { path: PathBuf, source: io::Error },
    #[error("{} lists no sources", list.display())]
    NoSources { list: PathBuf },
    #[error("{} is older than {}", program.display(), source_file.display())]
    Older { program: PathBuf, source_file: PathBuf },
}

/// Compares the program with every source that cargo lists beside it, those of this workspace's crates included.
///
/// Its age and that of the released program say nothing about each other, because cargo links them in any order.
pub(crate) fn must_be_up_to_date(program: &Path) -> Result<(), NotUpToDate> {
    let built = modified(program)?;
    let list = program.with_extension("d");
    let text = std::fs::read_to_string(&list).map_err(|source| NotUpToDate::Missing {
        path: list.clone(),
        source,
    })?;
    for source_file in sources(&text).ok_or(NotUpToDate::NoSources { list })? {
        let source_file = PathBuf::from(source_file);
        if modified(&source_file)? > built {
            let program = program.to_owned();
            return Err(NotUpToDate::Older { program, source_file });
        }
    }
    Ok(())
}

fn modified(path: &Path) -> Result<SystemTime, NotUpToDate> {
    let modified = path.metadata().and_then(|metadata| metadata.modified());
    modified.map_err(|source| NotUpToDate::Missing {
        path: path.to_owned(),
        source,
    })
}

/// The list is a rule of make, with a backslash before a space in a name: `program: source source`.
fn sources(list: &str) -> Option<Vec<String>> {
    let (_, sources) = list.split_once(": ")?;
    shlex::split(sources)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_program_is_as_new_as_the_newest_of_its_sources() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let (program, one, other) = (path("program"), path("one.rs"), path("an other.rs"));
        let refused = || must_be_up_to_date(&program).unwrap_err().to_string();
        assert!(refused().contains("program is not there"));
        for file in [&one, &other, &program] {
            fs::write(file, "").unwrap();
        }
        assert!(refused().contains("program.d is not there"));
        fs::write(path("program.d"), "").unwrap();
        assert!(refused().contains("program.d lists no sources"));
        let escaped = other.display().to_string().replace(' ', "\\ ");
        fs::write(
            path("program.d"),
            format!("{}: {} {escaped}\n", program.display(), one.display()),
        )
        .unwrap();

        let built = modified(&program).unwrap();
        let date = |file: &Path, time| {
            File::options()
                .write(true)
                .open(file)
                .unwrap()
                .set_modified(time)
                .unwrap()
        };
        for file in [&one, &other] {
            date(file, built);
        }
        must_be_up_to_date(&program).unwrap();
        date(&other, built + Duration::from_secs(1));
        assert!(refused().contains("program is older than"));
        assert!(refused().contains("an other.rs"));
        fs::remove_file(&other).unwrap();
        assert!(refused().contains("an other.rs is not there"));
    }
}
