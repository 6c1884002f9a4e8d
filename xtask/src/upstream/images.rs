//! The container images of a mirror.

use anyhow::Result;
use oci_archive::{Capability, Content, Image, Layer};

use super::programs::Programs;
use super::recipe::{IMAGES, Recipe};

/// An image and the name of its archive, without the ending.
pub(super) struct NamedImage {
    pub(super) title: &'static str,
    pub(super) image: Image,
}

/// All images of a mirror, in the order of [`IMAGES`].
pub(super) fn all(recipe: &Recipe, programs: &Programs, packet_filter: &Layer) -> Result<Vec<NamedImage>> {
    let make = |title| {
        Ok(NamedImage {
            title,
            image: image(title, recipe, programs, packet_filter)?,
        })
    };
    IMAGES.into_iter().map(make).collect()
}

fn image(title: &str, recipe: &Recipe, programs: &Programs, packet_filter: &Layer) -> Result<Image> {
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
        "flannel" | "kube-proxy" => vec![packet_filter.clone(), layer],
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::recipe::Minor;
    use super::*;

    #[test]
    fn images_are_what_manifests_expect() {
        let folder = tempfile::tempdir().unwrap();
        for program in IMAGES.iter().chain(&["etcdctl", "flanneld"]) {
            fs::write(folder.path().join(program), "").unwrap();
        }
        let programs = Programs::new(vec![folder.path().to_owned()]);
        let images = all(&Recipe::new(Minor::V1_35), &programs, &Layer::new()).unwrap();
        let summary: Vec<_> = images
            .iter()
            .map(|NamedImage { title, image }| {
                let user = image.user.split(':').next().unwrap();
                format!("{title} {} {user:?} {}", image.entrypoint.join(" "), image.layers.len())
            })
            .collect();
        let expected = [
            r#"coredns /coredns "65532" 1"#,
            r#"etcd /usr/local/bin/etcd "" 1"#,
            r#"flannel /opt/bin/flanneld "" 2"#,
            r#"kube-apiserver /usr/local/bin/kube-apiserver "" 1"#,
            r#"kube-controller-manager /usr/local/bin/kube-controller-manager "" 1"#,
            r#"kube-proxy /usr/local/bin/kube-proxy "" 2"#,
            r#"kube-scheduler /usr/local/bin/kube-scheduler "" 1"#,
            r#"pause /pause "65535" 1"#,
        ];
        assert_eq!(summary, expected);
    }
}
