use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::PathBuf;

use tar::{EntryType, Header};

/// One layer of an image: a set of files, directories and symbolic links, all owned by root.
#[derive(Clone, Debug, Default)]
pub struct Layer {
    entries: BTreeMap<String, Entry>,
}

/// The content of a file.
#[derive(Clone, Debug)]
pub enum Content {
    /// The bytes themselves.
    Bytes(Vec<u8>),
    /// The content of this file of the host when the archive is written.
    HostFile(PathBuf),
}

/// A Linux capability that a file can grant, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    /// Binding to ports below 1024: `CAP_NET_BIND_SERVICE`, linux/capability.h.
    NetBindService = 10,
}

/// An entry could not be added to a layer.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The path is relative, ends with a slash, or has empty, `.` or `..` parts.
    #[error("{0:?} is not an absolute path in normal form")]
    Path(String),
    /// Something else is already there, or a file is where a directory is needed.
    #[error("{0:?} is in the layer twice")]
    Twice(String),
    /// A capability was granted to something that is not a file of this layer.
    #[error("{0:?} is not a file of the layer")]
    NoFile(String),
}

impl Layer {
    /// An empty layer.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a file at the absolute `path`, and missing parents with mode 0755.
    ///
    /// # Errors
    /// When the path is not in normal form or is already taken.
    pub fn file(&mut self, path: &str, mode: u32, content: Content) -> Result<&mut Self, LayerError> {
        self.insert(
            path,
            Entry::File {
                mode,
                content,
                capability: None,
            },
        )
    }

    /// Lets the program at `path` gain `capability` even if the user is not root.
    ///
    /// # Errors
    /// When there is no file at `path`.
    pub fn grant(&mut self, path: &str, capability: Capability) -> Result<&mut Self, LayerError> {
        match self.entries.get_mut(normal_form(path)?) {
            Some(Entry::File {
                capability: granted, ..
            }) => *granted = Some(capability),
            _ => return Err(LayerError::NoFile(path.to_owned())),
        }
        Ok(self)
    }

    /// Adds a directory, or sets the mode of an existing one.
    ///
    /// # Errors
    /// When the path is not in normal form or names something else.
    pub fn directory(&mut self, path: &str, mode: u32) -> Result<&mut Self, LayerError> {
        self.insert(path, Entry::Directory { mode })
    }

    /// Adds a symbolic link to `target`, which is not checked.
    ///
    /// # Errors
    /// When the path is not in normal form or is already taken.
    pub fn symlink(&mut self, path: &str, target: &str) -> Result<&mut Self, LayerError> {
        self.insert(
            path,
            Entry::Symlink {
                target: target.to_owned(),
            },
        )
    }

    fn insert(&mut self, path: &str, entry: Entry) -> Result<&mut Self, LayerError> {
        let inside = normal_form(path)?;
        for (end, _) in inside.match_indices('/') {
            let parent = self
                .entries
                .entry(inside[..end].to_owned())
                .or_insert(Entry::Directory { mode: 0o755 });
            if !matches!(parent, Entry::Directory { .. }) {
                return Err(LayerError::Twice(path.to_owned()));
            }
        }
        match self.entries.entry(inside.to_owned()) {
            Slot::Vacant(free) => {
                free.insert(entry);
            }
            Slot::Occupied(mut there) => match (there.get_mut(), entry) {
                (Entry::Directory { mode: old }, Entry::Directory { mode }) => *old = mode,
                _ => return Err(LayerError::Twice(path.to_owned())),
            },
        }
        Ok(self)
    }

    /// Writes the layer as a tar file, sorted by path, parents first.
    ///
    /// # Errors
    /// When a file of the host cannot be read or changes meanwhile, or writing to `out` fails.
    pub fn write_tar(&self, out: impl Write) -> io::Result<()> {
        let mut tar = tar::Builder::new(out);
        for (path, entry) in &self.entries {
            entry.append(&mut tar, path)?;
        }
        tar.into_inner()?.flush()
    }
}

#[derive(Clone, Debug)]
enum Entry {
    Directory {
        mode: u32,
    },
    File {
        mode: u32,
        content: Content,
        capability: Option<Capability>,
    },
    Symlink {
        target: String,
    },
}

impl Entry {
    fn append(&self, tar: &mut tar::Builder<impl Write>, path: &str) -> io::Result<()> {
        match self {
            Self::Directory { mode } => {
                let mut header = header(EntryType::Directory, *mode, 0);
                tar.append_data(&mut header, format!("{path}/"), io::empty())
            }
            Self::File {
                mode,
                content,
                capability,
            } => {
                if let Some(capability) = capability {
                    tar.append_pax_extensions([("SCHILY.xattr.security.capability", xattr(*capability).as_slice())])?;
                }
                content.append(tar, path, *mode)
            }
            Self::Symlink { target } => {
                let mut header = header(EntryType::Symlink, 0o777, 0);
                tar.append_link(&mut header, path, target)
            }
        }
    }
}

impl Content {
    fn append(&self, tar: &mut tar::Builder<impl Write>, path: &str, mode: u32) -> io::Result<()> {
        match self {
            Self::Bytes(bytes) => {
                let mut header = header(EntryType::Regular, mode, bytes.len() as u64);
                tar.append_data(&mut header, path, bytes.as_slice())
            }
            Self::HostFile(host) => {
                let named = |err: io::Error| io::Error::new(err.kind(), format!("{}: {err}", host.display()));
                let file = File::open(host).map_err(named)?;
                let size = file.metadata()?.len();
                let mut header = header(EntryType::Regular, mode, size);
                tar.append_data(
                    &mut header,
                    path,
                    ExactLen {
                        inner: file,
                        left: size,
                    },
                )
                .map_err(named)
            }
        }
    }
}

/// The extended attribute that makes one capability permitted and effective: `struct vfs_cap_data`, revision 2,
/// linux/capability.h.
fn xattr(capability: Capability) -> [u8; 20] {
    const REVISION_2_EFFECTIVE: u32 = 0x0200_0001;
    let mut bytes = [0; 20];
    bytes[..4].copy_from_slice(&REVISION_2_EFFECTIVE.to_le_bytes());
    bytes[4..8].copy_from_slice(&(1_u32 << capability as u32).to_le_bytes());
    bytes
}

/// A file that must keep the length it had when it was opened; otherwise the tar file around it would be broken.
struct ExactLen<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for ExactLen<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        let changed = || io::Error::other("the file's length changed while it was read");
        self.left = self.left.checked_sub(read as u64).ok_or_else(changed)?;
        if read == 0 && self.left > 0 && !buffer.is_empty() {
            Err(changed())
        } else {
            Ok(read)
        }
    }
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn normal_form(path: &str) -> Result<&str, LayerError> {
    path.strip_prefix('/')
        .filter(|inside| inside.split('/').all(|part| !matches!(part, "" | "." | "..")))
        .ok_or_else(|| LayerError::Path(path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_paths_that_leave_the_image_or_repeat() {
        let mut layer = Layer::new();
        for bad in ["", "/", "a", "/a/", "/a//b", "/../a", "/a/./b"] {
            assert!(
                matches!(layer.file(bad, 0o644, Content::Bytes(vec![])), Err(LayerError::Path(_))),
                "{bad}"
            );
        }
        layer.file("/a/b", 0o644, Content::Bytes(vec![])).unwrap();
        for taken in ["/a", "/a/b", "/a/b/c"] {
            assert!(
                matches!(layer.symlink(taken, "x"), Err(LayerError::Twice(_))),
                "{taken}"
            );
        }
        layer.directory("/a", 0o700).unwrap();
    }

    #[test]
    fn grants_capabilities_to_files_only() {
        let mut layer = Layer::new();
        layer.file("/a/b", 0o755, Content::Bytes(vec![])).unwrap();
        for other in ["/a", "/c"] {
            assert!(
                matches!(
                    layer.grant(other, Capability::NetBindService),
                    Err(LayerError::NoFile(_))
                ),
                "{other}"
            );
        }
        layer.grant("/a/b", Capability::NetBindService).unwrap();
    }

    /// What `setcap cap_net_bind_service=+ep` writes.
    #[test]
    fn encodes_a_capability_as_the_kernel_does() {
        let expected = hex::decode("0100000200040000000000000000000000000000").unwrap();
        assert_eq!(xattr(Capability::NetBindService).as_slice(), expected);
    }

    #[test]
    fn refuses_a_host_file_that_changes_while_it_is_read() {
        for (left, ok) in [(3, true), (2, false), (4, false)] {
            let mut sink = Vec::new();
            let read = ExactLen {
                inner: &b"abc"[..],
                left,
            }
            .read_to_end(&mut sink);
            assert_eq!(read.is_ok(), ok, "{left}");
        }
    }
}
