use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};

use atomic_file::{Access, NewFile};
use digest::{Digest, HashingWriter};
use tar::{EntryType, Header};

use crate::image::{CONFIG, Descriptor, MANIFEST};
use crate::{Compression, Image, Layer};

/// An archive could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteArchiveError {
    /// A file of the host could not be read, or the layer could not be stored.
    #[error("cannot write layer {index} of {image}")]
    Layer {
        /// The image's name.
        image: String,
        /// The layer's position, from 0.
        index: usize,
        /// What the system said.
        source: io::Error,
    },
    /// The archive itself could not be written.
    #[error("cannot write {path:?}")]
    Archive {
        /// Where the archive was to be.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Writes `image` to `path` and returns the digest of its manifest.
///
/// 1. Each layer is stored in a temporary file beside `path` and hashed before and after compression.
/// 2. Configuration, manifest and index are made from those digests.
/// 3. Everything is written to a temporary archive, which then replaces `path`.
///
/// # Errors
/// When a file cannot be read or written; `path` is then as it was before.
pub fn write_archive(image: &Image, path: &Path) -> Result<Digest, WriteArchiveError> {
    let folder = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let stored = store_layers(image, folder)?;
    let documents = Documents::new(image, &stored);
    write_blobs(documents.blobs(stored), &documents, path).map_err(|source| WriteArchiveError::Archive {
        path: path.to_owned(),
        source,
    })?;
    Ok(documents.manifest_digest)
}

/// A layer as it is stored in the archive.
struct StoredLayer {
    file: File,
    diff_id: Digest,
    digest: Digest,
    len: u64,
}

fn store_layers(image: &Image, folder: &Path) -> Result<Vec<StoredLayer>, WriteArchiveError> {
    let store = |(index, layer)| {
        store_layer(layer, image.compression, folder).map_err(|source| WriteArchiveError::Layer {
            image: image.name.to_string(),
            index,
            source,
        })
    };
    image.layers.iter().enumerate().map(store).collect()
}

fn store_layer(layer: &Layer, compression: Compression, folder: &Path) -> io::Result<StoredLayer> {
    let out = HashingWriter::new(BufWriter::new(tempfile::tempfile_in(folder)?));
    let (out, diff_id) = match compression {
        Compression::None => {
            let mut plain = HashingWriter::new(out);
            layer.write_tar(&mut plain)?;
            let (out, diff_id, _) = plain.finish();
            (out, diff_id)
        }
        Compression::Zstd => {
            let mut plain = HashingWriter::new(zstd::Encoder::new(out, ZSTD_LEVEL)?);
            layer.write_tar(&mut plain)?;
            let (encoder, diff_id, _) = plain.finish();
            (encoder.finish()?, diff_id)
        }
    };
    let (out, digest, len) = out.finish();
    let mut file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.rewind()?;
    Ok(StoredLayer {
        file,
        diff_id,
        digest,
        len,
    })
}

/// The JSON documents of the archive.
struct Documents {
    config: Vec<u8>,
    manifest: Vec<u8>,
    manifest_digest: Digest,
    index: Vec<u8>,
}

impl Documents {
    fn new(image: &Image, layers: &[StoredLayer]) -> Self {
        let diff_ids: Vec<Digest> = layers.iter().map(|layer| layer.diff_id).collect();
        let config = image.config_json(&diff_ids);
        let media_type = image.compression.media_type();
        let layers = layers
            .iter()
            .map(|layer| Descriptor::new(media_type, layer.digest, layer.len))
            .collect();
        let manifest = image.manifest_json(describe(CONFIG, &config), layers);
        let index = image.index_json(describe(MANIFEST, &manifest));
        Self {
            manifest_digest: Digest::of(&manifest),
            config,
            manifest,
            index,
        }
    }

    /// All blobs, sorted by name, each once.
    fn blobs(&self, layers: Vec<StoredLayer>) -> Vec<Blob> {
        let mut blobs: Vec<Blob> = layers.into_iter().map(Blob::from_layer).collect();
        blobs.extend([&self.config, &self.manifest].map(|document| Blob::from_bytes(document)));
        blobs.sort_by(|a, b| a.name.cmp(&b.name));
        blobs.dedup_by(|a, b| a.name == b.name);
        blobs
    }
}

struct Blob {
    name: String,
    len: u64,
    content: Box<dyn Read>,
}

impl Blob {
    fn from_layer(layer: StoredLayer) -> Self {
        Self {
            name: layer.digest.to_string(),
            len: layer.len,
            content: Box::new(layer.file),
        }
    }

    fn from_bytes(bytes: &[u8]) -> Self {
        let content = Box::new(io::Cursor::new(bytes.to_vec()));
        Self {
            name: Digest::of(bytes).to_string(),
            len: bytes.len() as u64,
            content,
        }
    }
}

fn write_blobs(blobs: Vec<Blob>, documents: &Documents, path: &Path) -> io::Result<()> {
    let file = NewFile::create(path, Access::Mode(0o644))?;
    let mut tar = tar::Builder::new(BufWriter::new(file));
    for directory in ["blobs/", "blobs/sha256/"] {
        append(&mut tar, directory, EntryType::Directory, 0, io::empty())?;
    }
    for blob in blobs {
        append(
            &mut tar,
            &format!("blobs/sha256/{}", blob.name),
            EntryType::Regular,
            blob.len,
            blob.content,
        )?;
    }
    for (name, bytes) in [("index.json", documents.index.as_slice()), ("oci-layout", OCI_LAYOUT)] {
        append(&mut tar, name, EntryType::Regular, bytes.len() as u64, bytes)?;
    }
    let file = tar.into_inner()?.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.commit()
}

fn append(
    tar: &mut tar::Builder<impl Write>,
    name: &str,
    kind: EntryType,
    len: u64,
    content: impl Read,
) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
    header.set_size(len);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    tar.append_data(&mut header, name, content)
}

fn describe(media_type: &'static str, bytes: &[u8]) -> Descriptor {
    Descriptor::new(media_type, Digest::of(bytes), bytes.len() as u64)
}

/// OCI image layout 1.1, "oci-layout file".
const OCI_LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// A little above the default: archives are written once and read by every node.
const ZSTD_LEVEL: i32 = 6;
