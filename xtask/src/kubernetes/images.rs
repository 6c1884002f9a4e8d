//! The container images of a mirror.

use anyhow::Result;
use oci_archive::{Capability, Content, Image, Layer};

use super::Programs;
use super::recipe::{IMAGES, Recipe};

/// An image and the name of its archive, without the ending.
pub(super) struct NamedImage {
    pub(super) title: &'static str,
    pub(super) image: Image,
}

/// All images of a mirror, in the order of [`IMAGES`].
pub(super) fn all(recipe: &Recipe, programs: &Programs, network_tools: &Layer) -> Result<Vec<NamedImage>> {
    let make = |title| {
        Ok(NamedImage {
            title,
            image: image(title, recipe, programs, network_tools)?,
        })
    };
    IMAGES.into_iter().map(make).collect()
}

fn image(title: &str, recipe: &Recipe, programs: &Programs, network_tools: &Layer) -> Result<Image> {
    let program = match title {
        "flannel" => "flanneld",
        other => other,
    };
    let path = match title {
        // Where upstream's images have them and manifests look for them.
        "coredns" | "pause" => format!("/{program}"),
        "flannel" => format!("/opt/bin/{program}"),
        _ => format!("/usr/local/bin/{program}"),
    };
    let mut layer = base()?;
    layer.file(&path, 0o755, Content::HostFile(programs.path(program)?))?;
    if title == "coredns" {
        // It serves port 53 and is not root.
        layer.grant(&path, Capability::NetBindService)?;
    }
    if title == "etcd" {
        layer.file(
            "/usr/local/bin/etcdctl",
            0o755,
            Content::HostFile(programs.path("etcdctl")?),
        )?;
    }
    let layers = match title {
        "flannel" | "kube-proxy" => vec![network_tools.clone(), layer],
        _ => vec![layer],
    };
    let mut image = Image::new(recipe.image_name(title).parse()?, layers, &[&path]);
    image.env.insert(
        "PATH".into(),
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into(),
    );
    match title {
        "coredns" => image.user = "65532:65532".into(),
        "pause" => image.user = "65535:65535".into(),
        _ => {}
    }
    Ok(image)
}

/// What programs expect around them: a writable `/tmp`, and names for the users they may run as.
fn base() -> Result<Layer> {
    let mut layer = Layer::new();
    let mut text = |path, text: &str| layer.file(path, 0o644, Content::Bytes(text.into())).map(|_| ());
    text(
        "/etc/passwd",
        "root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/:/sbin/nologin\n",
    )?;
    text("/etc/group", "root:x:0:\nnonroot:x:65532:\n")?;
    text("/etc/nsswitch.conf", "hosts: files dns\n")?;
    layer.directory("/tmp", 0o1777)?.directory("/root", 0o700)?;
    Ok(layer)
}
