use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Anyone may read and run programs and images, and no one may change them.
const MODE: u32 = 0o555;

/// Moves a complete file to its final name. Both may be on different mounts.
pub(crate) fn move_file(from: &Path, to: &Path) -> io::Result<()> {
    let folder = to.parent().expect("install paths are in a folder");
    fs::create_dir_all(folder)?;
    fs::set_permissions(from, Permissions::from_mode(MODE))?;
    match fs::rename(from, to) {
        // Bind mounts of one disk are still different mounts.
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            write_file(&mut File::open(from)?, to)?;
            fs::remove_file(from)
        }
        other => {
            other?;
            File::open(folder)?.sync_all()
        }
    }
}

/// Writes a file under a temporary name in the same folder and renames it.
pub(crate) fn write_file(content: &mut impl io::Read, to: &Path) -> io::Result<()> {
    let folder = to.parent().expect("install paths are in a folder");
    fs::create_dir_all(folder)?;
    let mut file = tempfile::Builder::new().prefix(".installing-").tempfile_in(folder)?;
    io::copy(content, &mut file)?;
    file.as_file().set_permissions(Permissions::from_mode(MODE))?;
    file.as_file().sync_all()?;
    file.persist(to)?;
    File::open(folder)?.sync_all()
}
