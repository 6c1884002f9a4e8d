//! What an archive contains, and that it is always the same.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use digest::{Digest, oci};
use oci_archive::{Compression, Content, Image, Layer, write_archive};
use serde_json::{Value, json};

const NAME: &str = "registry.example/some/pause:3.10.1";

fn image(host_file: &Path, compression: Compression) -> Image {
    let mut base = Layer::new();
    base.directory("/tmp", 0o1777)
        .unwrap()
        .symlink("/bin", "usr/bin")
        .unwrap();
    let mut top = Layer::new();
    top.file("/usr/bin/pause", 0o755, Content::HostFile(host_file.to_owned()))
        .unwrap();
    top.file("/etc/motd", 0o644, Content::Bytes(b"hello".to_vec())).unwrap();
    let mut image = Image::new(NAME.parse().unwrap(), vec![base, top], &["/usr/bin/pause", "-x"]);
    image.compression = compression;
    image.user = "65535:65535".into();
    image.env.insert("PATH".into(), "/usr/bin".into());
    image
}

/// Every file of the archive.
fn read(archive: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut tar = tar::Archive::new(File::open(archive).unwrap());
    let entries = tar.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        assert_eq!((entry.header().mtime().unwrap(), entry.header().uid().unwrap()), (0, 0));
        let path = entry.path().unwrap().display().to_string();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        (path, bytes)
    });
    entries.collect()
}

fn blob<'a>(files: &'a BTreeMap<String, Vec<u8>>, descriptor: &Value) -> &'a [u8] {
    let digest = descriptor["digest"].as_str().unwrap();
    let bytes = &files[&format!("blobs/{}", digest.replace(':', "/"))];
    assert_eq!(descriptor["size"], bytes.len());
    assert_eq!(digest, oci::format(&Digest::of(bytes)));
    bytes
}

#[test]
fn holds_what_was_asked_for_under_the_name_that_containerd_reads() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("program");
    fs::write(&program, b"\x7fELF").unwrap();
    let archive = folder.path().join("pause.oci.tar");
    let digest = write_archive(&image(&program, Compression::Zstd), &archive).unwrap();

    let files = read(&archive);
    assert_eq!(files["oci-layout"], br#"{"imageLayoutVersion":"1.0.0"}"#);
    let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
    let described = &index["manifests"][0];
    assert_eq!(described["digest"], oci::format(&digest));
    let names = json!({"io.containerd.image.name": NAME, "org.opencontainers.image.ref.name": "3.10.1"});
    assert_eq!(described["annotations"], names);

    let manifest: Value = serde_json::from_slice(blob(&files, described)).unwrap();
    let config: Value = serde_json::from_slice(blob(&files, &manifest["config"])).unwrap();
    let process = json!({"Entrypoint": ["/usr/bin/pause", "-x"], "Env": ["PATH=/usr/bin"], "User": "65535:65535"});
    assert_eq!(config["config"], process);

    let plain = zstd::decode_all(blob(&files, &manifest["layers"][1])).unwrap();
    let mut layer = tar::Archive::new(plain.as_slice());
    let paths: Vec<_> = layer
        .entries()
        .unwrap()
        .map(|e| e.unwrap().path().unwrap().display().to_string())
        .collect();
    assert_eq!(paths, ["etc/", "etc/motd", "usr/", "usr/bin/", "usr/bin/pause"]);
    assert_eq!(config["rootfs"]["diff_ids"][1], oci::format(&Digest::of(&plain)));
}

#[test]
fn same_inputs_give_the_same_bytes() {
    for compression in [Compression::None, Compression::Zstd] {
        let folder = tempfile::tempdir().unwrap();
        let archives = ["a", "b"].map(|name| {
            // Another file, another time and another mode; none of these may make a difference.
            let program = folder.path().join(format!("program-{name}"));
            fs::write(&program, vec![7; 300_000]).unwrap();
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(u64::from(name.as_bytes()[0]));
            File::options()
                .write(true)
                .open(&program)
                .unwrap()
                .set_modified(time)
                .unwrap();
            let archive = folder.path().join(name);
            write_archive(&image(&program, compression), &archive).unwrap();
            fs::read(archive).unwrap()
        });
        assert!(archives[0] == archives[1], "{compression:?}");
    }
}

#[test]
fn equal_layers_are_stored_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut layer = Layer::new();
    layer.file("/a", 0o644, Content::Bytes(b"a".to_vec())).unwrap();
    let image = Image::new(NAME.parse().unwrap(), vec![layer.clone(), layer], &["/a"]);
    let archive = folder.path().join("archive");
    write_archive(&image, &archive).unwrap();
    let blobs = read(&archive)
        .keys()
        .filter(|path| path.starts_with("blobs/sha256/") && path.len() > 20)
        .count();
    assert_eq!(blobs, 3);
}

#[test]
fn a_missing_host_file_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("archive");
    let err = write_archive(&image(&folder.path().join("absent"), Compression::None), &archive).unwrap_err();
    assert_eq!(err.to_string(), format!("cannot write layer 1 of {NAME}"));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}
