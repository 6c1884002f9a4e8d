//! What a kubelet authenticates with.

use std::fs;
use std::io;
use std::mem;

use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::Folders;
use crate::folders::replace_file;

/// The kubelet's present client certificate and its key, which it renews itself.
const CURRENT: &str = "/var/lib/kubelet/pki/kubelet-client-current.pem";

/// Lets a kubeconfig that holds a certificate, as `kubeadm init` writes it for the first node, name the kubelet's own file instead.
/// Without that, a kubelet that starts when the first certificate has expired could not authenticate.
///
/// kubeadm's phase `kubelet-finalize` does the same, and then restarts the kubelet. That is not needed: the running kubelet uses the
/// renewed certificate anyway.
///
/// # Errors
/// When the kubelet has not stored its certificate yet, or its kubeconfig is not what kubeadm writes.
pub(crate) fn use_renewed_certificate(folders: &Folders) -> io::Result<()> {
    // It stores its first certificate before it starts the API server.
    fs::metadata(folders.path(CURRENT)).map_err(|error| {
        let problem = format!("the kubelet has not stored its certificate at {CURRENT}: {error}");
        io::Error::new(error.kind(), problem)
    })?;
    let path = folders.kubernetes("kubelet.conf");
    let text = Zeroizing::new(fs::read_to_string(&path)?);
    let renewed = with_renewed_certificate(&text).map_err(|problem| {
        let problem = format!("cannot use {}: {problem}", path.display());
        io::Error::new(io::ErrorKind::InvalidData, problem)
    })?;
    replace_file(&path, renewed.as_bytes(), 0o600)
}

fn with_renewed_certificate(kubeconfig: &str) -> Result<String, &'static str> {
    let mut config: Value = serde_saphyr::from_str(kubeconfig).map_err(|_| "not YAML")?;
    let Some(Value::Array(users)) = config.get_mut("users") else {
        return Err("it has no list of users");
    };
    let [user] = users.as_mut_slice() else {
        return Err("it does not have exactly one user");
    };
    let Some(credentials) = user.get_mut("user") else {
        return Err("its user has no credentials");
    };
    let replaced = mem::replace(
        credentials,
        json!({ "client-certificate": CURRENT, "client-key": CURRENT }),
    );
    wipe(replaced);
    serde_saphyr::to_string(&config).map_err(|_| "it cannot be written as YAML")
}

/// The key stays in the kubelet's memory, not in ours.
fn wipe(credentials: Value) {
    if let Value::Object(fields) = credentials {
        for (_, field) in fields {
            if let Value::String(text) = field {
                drop(Zeroizing::new(text));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use tempfile::TempDir;

    use super::*;

    const WRITTEN_BY_KUBEADM: &str = "\
apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: Q0E=
    server: https://10.42.1.100:6443
  name: mini
contexts:
- context:
    cluster: mini
    user: system:node:control-plane-0
  name: system:node:control-plane-0@mini
current-context: system:node:control-plane-0@mini
kind: Config
users:
- name: system:node:control-plane-0
  user:
    client-certificate-data: Q0VSVA==
    client-key-data: S0VZ
";

    /// A node whose kubelet has this kubeconfig and has stored its certificate.
    fn first_node() -> (TempDir, Folders) {
        let root = TempDir::new().unwrap();
        let folders = Folders::below(root.path());
        replace_file(
            &folders.kubernetes("kubelet.conf"),
            WRITTEN_BY_KUBEADM.as_bytes(),
            0o644,
        )
        .unwrap();
        replace_file(&folders.path(CURRENT), b"", 0o600).unwrap();
        (root, folders)
    }

    #[test]
    fn the_kubelets_own_file_replaces_the_certificate_and_its_key() {
        let (_root, folders) = first_node();
        use_renewed_certificate(&folders).unwrap();
        let path = folders.kubernetes("kubelet.conf");
        let text = fs::read_to_string(&path).unwrap();
        let config: Value = serde_saphyr::from_str(&text).unwrap();
        let mut expected: Value = serde_saphyr::from_str(WRITTEN_BY_KUBEADM).unwrap();
        expected["users"][0]["user"] = json!({ "client-certificate": CURRENT, "client-key": CURRENT });
        assert_eq!(config, expected);
        assert!(!text.contains("S0VZ"));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_certificate_that_the_kubelet_has_not_stored_is_not_named() {
        let (_root, folders) = first_node();
        fs::remove_file(folders.path(CURRENT)).unwrap();
        let error = use_renewed_certificate(&folders).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().contains(CURRENT), "{error}");
        let kept = fs::read_to_string(folders.kubernetes("kubelet.conf")).unwrap();
        assert_eq!(kept, WRITTEN_BY_KUBEADM);
    }

    #[test]
    fn what_kubeadm_does_not_write_is_refused() {
        let two = WRITTEN_BY_KUBEADM.replace("users:\n", "users:\n- name: another\n");
        let no_fields = "users: [text]";
        for text in [
            "",
            "users:",
            "users: []",
            "kind: Config",
            "{",
            no_fields,
            "users: [{name: n}]",
            &two,
        ] {
            assert!(with_renewed_certificate(text).is_err(), "{text}");
        }
    }
}
