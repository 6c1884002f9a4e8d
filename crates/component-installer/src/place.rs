use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use atomic_file::{Access, NewFile};

/// Anyone may read and run programs and images, and no one may change them.
const MODE: u32 = 0o555;

/// Moves a complete file to its final name. Both may be on different mounts.
pub(crate) fn move_file(from: &Path, to: &Path) -> io::Result<()> {
    make_folder_of(to)?;
    fs::set_permissions(from, Permissions::from_mode(MODE))?;
    match atomic_file::rename(from, to) {
        // Bind mounts of one disk are still different mounts.
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            write_file(&mut File::open(from)?, to)?;
            fs::remove_file(from)
        }
        other => other,
    }
}

/// Writes a file, which appears when it is complete.
pub(crate) fn write_file(content: &mut impl io::Read, to: &Path) -> io::Result<()> {
    make_folder_of(to)?;
    let mut file = NewFile::create(to, Access::Mode(MODE))?;
    io::copy(content, &mut file)?;
    file.commit()
}

fn make_folder_of(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path.parent().expect("install paths are in a folder"))
}
