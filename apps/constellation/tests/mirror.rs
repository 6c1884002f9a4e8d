//! `mirror create`: every file is checked, what is there is kept or refused, and a folder with a list is complete.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop there")]

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::{Arc, Mutex};

use digest::{Digest, oci};
use support::{Host, stderr, stdout};

const KUBELET: &[u8] = b"the kubelet, as far as a test is concerned";

fn component(url: &str, content: &[u8]) -> String {
    let hash = Digest::of(content);
    format!(r#"{{"url":"{url}","hash":"sha256:{hash}","install_path":"/run/state/bin/{hash}"}}"#)
}

fn list(components: &[String]) -> String {
    let components = components.join(",");
    format!(r#"{{"version":"v1","kubernetes_version":"v1.35.4","components":[{components}]}}"#)
}

/// A mirror with one file.
fn source(host: &Host, content: &[u8]) -> PathBuf {
    let folder = host.path("source");
    fs::create_dir_all(folder.join("bin")).unwrap();
    fs::write(folder.join("bin/kubelet"), content).unwrap();
    fs::write(
        folder.join("components.json"),
        list(&[component("bin/kubelet", KUBELET)]),
    )
    .unwrap();
    folder
}

fn create(host: &Host, options: &[&str]) -> Output {
    fs::create_dir_all(host.workspace()).unwrap();
    let target = host.path("target");
    host.run(&[&["mirror", "create", target.to_str().unwrap()], options].concat())
}

fn from(host: &Host, source: &Path) -> Output {
    create(host, &["--from", source.to_str().unwrap()])
}

/// The digest of a source's list, as an operator takes it from where the mirror was filled.
fn pin(host: &Host) -> String {
    oci::format(&Digest::of_file(host.path("source/components.json")).unwrap())
}

/// Serves one folder over HTTP, ranges included, and notes what was asked for.
fn serve(folder: PathBuf) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let notes = asked.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let lines: Vec<String> = BufReader::new(&stream)
                .lines()
                .map(Result::unwrap)
                .take_while(|line| !line.is_empty())
                .collect();
            let path = lines[0].split(' ').nth(1).unwrap();
            let range = lines
                .iter()
                .find_map(|line| line.strip_prefix("range: bytes=")?.strip_suffix('-'));
            notes.lock().unwrap().push(format!("{path} {}", range.unwrap_or("all")));
            let Ok(content) = fs::read(folder.join(path.trim_start_matches('/'))) else {
                write!(
                    stream,
                    "HTTP/1.1 404 Not Found\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
                )
                .unwrap();
                continue;
            };
            let start: usize = range.map_or(0, |start| start.parse().unwrap());
            let status = if start > 0 { "206 Partial Content" } else { "200 OK" };
            let length = content.len() - start;
            write!(
                stream,
                "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
            )
            .unwrap();
            stream.write_all(&content[start..]).unwrap();
        }
    });
    (address, asked)
}

#[test]
fn a_mirror_of_a_mirror_is_the_same() {
    let host = Host::new();
    let source = source(&host, KUBELET);
    let output = from(&host, &source);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(fs::read(host.path("target/bin/kubelet")).unwrap(), KUBELET);
    let parse = |path: PathBuf| serde_json::from_slice::<serde_json::Value>(&fs::read(path).unwrap()).unwrap();
    assert_eq!(
        parse(host.path("target/components.json")),
        parse(source.join("components.json"))
    );
}

#[test]
fn a_file_with_another_hash_is_refused_and_not_kept() {
    let host = Host::new();
    let output = from(&host, &source(&host, b"something else"));
    let error = stderr(&output);
    assert!(!output.status.success());
    assert!(
        error.contains("bin/kubelet") && error.contains("expected sha256:"),
        "{error}"
    );
    assert_eq!(fs::read_dir(host.path("target/bin")).unwrap().count(), 0);
    assert!(!host.path("target/components.json").exists());
}

#[test]
fn what_is_there_is_not_fetched_again() {
    let host = Host::new();
    let (address, asked) = serve(source(&host, KUBELET));
    for _ in 0..2 {
        let output = create(&host, &["--from", &address, "--digest", &pin(&host)]);
        assert!(output.status.success(), "{}", stderr(&output));
    }
    assert_eq!(
        *asked.lock().unwrap(),
        ["/components.json all", "/bin/kubelet all", "/components.json all"]
    );
}

/// The new list names another kubelet at the same path.
fn next_release(host: &Host) -> PathBuf {
    let source = source(host, b"another kubelet");
    fs::write(
        source.join("components.json"),
        list(&[
            component("bin/first", KUBELET),
            component("bin/kubelet", b"another kubelet"),
        ]),
    )
    .unwrap();
    fs::write(source.join("bin/first"), KUBELET).unwrap();
    source
}

/// Fills the target, which is refused because of this file; everything there stays as it is, and nothing comes to it.
fn check_refused(host: &Host, options: &[&str], file: &str) {
    let target = host.path("target");
    let before = tree(&target);
    let output = create(host, options);
    let error = stderr(&output);
    assert!(!output.status.success(), "{error}");
    let named = format!("{} exists and ", target.join(file).display());
    assert!(
        error.contains(&named) && error.contains("Next: fill another folder"),
        "{error}"
    );
    assert_eq!(tree(&target), before);
}

/// Every file below a folder, with its content.
fn tree(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(tree(&path));
        } else {
            files.push((path.clone(), fs::read(&path).unwrap_or_default()));
        }
    }
    files.sort();
    files
}

#[test]
fn another_release_does_not_mix_with_the_one_that_is_there() {
    let host = Host::new();
    assert!(from(&host, &source(&host, KUBELET)).status.success());
    let next = next_release(&host);
    let options = ["--from", next.to_str().unwrap()];
    check_refused(&host, &options, "components.json");
    // Neither does it if the first one was never completed.
    fs::remove_file(host.path("target/components.json")).unwrap();
    check_refused(&host, &options, "bin/kubelet");
}

#[test]
fn what_the_user_has_in_the_folder_is_not_replaced() {
    let host = Host::new();
    let source = source(&host, KUBELET);
    let (address, _) = serve(source.clone());
    let target = host.path("target");
    fs::create_dir_all(target.join("bin")).unwrap();
    let own = list(&[component(&format!("{address}/bin/kubelet"), KUBELET)]);
    fs::write(target.join("components.json"), own).unwrap();
    let pinned = target.join("components.json");
    check_refused(&host, &["--list", pinned.to_str().unwrap()], "components.json");
    fs::remove_file(&pinned).unwrap();

    let options = ["--from", source.to_str().unwrap()];
    let kubelet = target.join("bin/kubelet");
    fs::write(&kubelet, "the user's").unwrap();
    check_refused(&host, &options, "bin/kubelet");
    fs::remove_file(&kubelet).unwrap();
    std::os::unix::fs::symlink("nowhere", &kubelet).unwrap();
    check_refused(&host, &options, "bin/kubelet");
    fs::remove_file(&kubelet).unwrap();
    fs::create_dir(&kubelet).unwrap();
    check_refused(&host, &options, "bin/kubelet");
}

/// Somebody else wrote it, and the folder is a workspace.
#[test]
fn a_list_cannot_name_the_files_of_a_workspace() {
    let host = Host::new();
    let source = source(&host, KUBELET);
    for path in [
        "constellation-mastersecret.json",
        "a/constellation-qemu/b",
        "components.json",
    ] {
        let document = list(&[component(path, KUBELET)]);
        fs::write(source.join("components.json"), &document).unwrap();
        let pinned = host.path("pinned.json");
        fs::write(&pinned, &document).unwrap();
        for options in [&[][..], &["--list", pinned.to_str().unwrap()]] {
            let options = [&["--from", source.to_str().unwrap()], options].concat();
            let error = stderr(&create(&host, &options));
            assert!(error.contains(&format!("the list names {path}")), "{error}");
            assert!(!host.path("target").join(path).exists());
        }
    }
}

#[test]
fn a_list_with_two_files_for_one_path_is_refused() {
    let host = Host::new();
    let source = source(&host, KUBELET);
    let both = list(&[component("bin/kubelet", KUBELET), component("bin/kubelet", b"other")]);
    fs::write(source.join("components.json"), both).unwrap();
    let error = stderr(&from(&host, &source));
    assert!(error.contains("two different files bin/kubelet"), "{error}");
}

#[test]
fn two_runs_do_not_fill_one_folder_at_once() {
    let host = Host::new();
    let source = source(&host, KUBELET);
    fs::create_dir_all(host.path("target")).unwrap();
    let other = fs::File::open(host.path("target")).unwrap();
    other.lock().unwrap();
    let error = stderr(&from(&host, &source));
    assert!(error.contains("another `mirror create` fills"), "{error}");
    drop(other);
    assert!(from(&host, &source).status.success());
}

#[test]
fn a_download_that_was_cut_goes_on() {
    let host = Host::new();
    let (address, asked) = serve(source(&host, KUBELET));
    fs::create_dir_all(host.path("target/bin")).unwrap();
    fs::write(host.path("target/bin/.kubelet.part"), &KUBELET[..10]).unwrap();
    let output = create(&host, &["--from", &address, "--digest", &pin(&host)]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(fs::read(host.path("target/bin/kubelet")).unwrap(), KUBELET);
    assert_eq!(asked.lock().unwrap()[1], "/bin/kubelet 10");
}

#[test]
fn a_list_from_the_network_is_taken_with_its_digest_only() {
    let host = Host::new();
    let (address, asked) = serve(source(&host, KUBELET));
    let unpinned = stderr(&create(&host, &["--from", &address]));
    assert!(unpinned.contains("--digest"), "{unpinned}");
    assert_eq!(asked.lock().unwrap().len(), 0);

    let other = oci::format(&Digest::of(b"another list"));
    let refused = stderr(&create(&host, &["--from", &address, "--digest", &other]));
    assert!(refused.contains(&other) && refused.contains(&pin(&host)), "{refused}");
    assert!(!host.path("target").exists());
}

#[test]
fn the_digest_of_the_new_mirror_is_said() {
    let host = Host::new();
    let output = from(&host, &source(&host, KUBELET));
    let digest = Digest::of_file(host.path("target/components.json")).unwrap();
    let said = format!("kubernetesComponentsDigest: {}", oci::format(&digest));
    assert!(stdout(&output).contains(&said), "{}", stdout(&output));
}

/// The proxy is another server on this machine: it sees the whole address, which nothing else could resolve.
#[test]
fn downloads_go_through_the_environments_proxy() {
    let host = Host::new();
    let (proxy, asked) = serve(source(&host, KUBELET));
    let pin = pin(&host);
    fs::create_dir_all(host.workspace()).unwrap();
    let target = host.path("target");
    let mirror = |from: &str, no_proxy: &str| {
        host.command(&[
            "mirror",
            "create",
            target.to_str().unwrap(),
            "--from",
            from,
            "--digest",
            &pin,
        ])
        .env("HTTP_PROXY", &proxy)
        .env("http_proxy", &proxy)
        .env("NO_PROXY", no_proxy)
        .output()
        .unwrap()
    };
    mirror("http://mirror.invalid", "");
    assert_eq!(asked.lock().unwrap()[0], "http://mirror.invalid/components.json all");
    asked.lock().unwrap().clear();
    let excepted = mirror("http://mirror.invalid", "mirror.invalid");
    assert!(
        stderr(&excepted).contains("cannot reach the server"),
        "{}",
        stderr(&excepted)
    );
    assert_eq!(asked.lock().unwrap().len(), 0);
    // Another proxy's loopback is not this machine's.
    let (local, asked_here) = serve(host.path("source"));
    assert!(mirror(&local, "").status.success());
    assert_eq!(asked_here.lock().unwrap()[0], "/components.json all");
    assert_eq!(asked.lock().unwrap().len(), 0);
}

#[test]
fn a_cluster_is_made_from_the_pinned_list_only() {
    let host = Host::new();
    host.configure();
    let document = host.path("mirror/components.json");
    let pinned = oci::format(&Digest::of_file(&document).unwrap());
    fs::write(&document, list(&[component("bin/kubelet", KUBELET)])).unwrap();
    let found = oci::format(&Digest::of_file(&document).unwrap());
    let refused = stderr(&host.run(&["apply", "--yes"]));
    assert!(refused.contains(&pinned) && refused.contains(&found), "{refused}");

    // Served over the network and without a digest, it is not even asked for.
    let (address, asked) = serve(host.path("mirror"));
    host.change_config("kubernetesComponentsDigest:", "# kubernetesComponentsDigest:");
    host.change_config(
        &format!("mirror: {}", host.path("mirror").display()),
        &format!("mirror: {address}"),
    );
    let refused = stderr(&host.run(&["apply", "--yes"]));
    assert!(refused.contains("set kubernetesComponentsDigest"), "{refused}");
    assert_eq!(asked.lock().unwrap().len(), 0);
    assert_eq!(host.processes(), Vec::<i32>::new());
}

#[test]
fn a_mirror_that_nodes_cannot_reach_is_refused_before_a_machine_is_made() {
    let host = Host::released();
    host.configure();
    let (address, _) = serve(host.path("mirror"));
    let unreachable = address.replace("127.0.0.1", "[::ffff:127.0.0.1]");
    host.change_config(
        &format!("mirror: {}", host.path("mirror").display()),
        &format!("mirror: \"{unreachable}\""),
    );
    let refused = stderr(&host.run(&["apply", "--yes"]));
    assert!(refused.contains("only 127.0.0.1"), "{refused}");
    assert_eq!(host.processes(), Vec::<i32>::new());
}

/// Accepts connections, and says nothing.
fn silent() -> (String, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    (format!("http://{}", listener.local_addr().unwrap()), listener)
}

#[test]
fn a_silent_mirror_holds_no_lock_and_ends_with_ctrl_c() {
    let host = Host::new();
    host.configure();
    let (address, listener) = silent();
    let config = fs::read_to_string(host.workspace().join("constellation-conf.yaml")).unwrap();
    let line = config.lines().find(|line| line.starts_with("mirror: ")).unwrap();
    host.change_config(line, &format!("mirror: {address}"));
    let mut apply = host.command(&["apply", "--yes"]).spawn().unwrap();
    let _connection = listener.accept().unwrap();
    // It waits now, and others have the workspace.
    let other = host.run(&["terminate", "--yes"]);
    assert!(other.status.success(), "{}", stderr(&other));

    let interrupt = std::process::Command::new("kill")
        .args(["-INT", &apply.id().to_string()])
        .status();
    assert!(interrupt.unwrap().success());
    assert_eq!(apply.wait().unwrap().code(), Some(130));
}

#[test]
fn a_list_with_addresses_becomes_a_mirror_without() {
    let host = Host::new();
    let (address, _) = serve(source(&host, KUBELET));
    let pinned = host.path("pinned.json");
    fs::write(&pinned, list(&[component(&format!("{address}/bin/kubelet"), KUBELET)])).unwrap();
    let output = create(&host, &["--list", pinned.to_str().unwrap()]);
    assert!(output.status.success(), "{}", stderr(&output));
    let written = fs::read_to_string(host.path("target/components.json")).unwrap();
    assert!(
        written.contains("\"files/") && !written.contains("http://"),
        "{written}"
    );
}

#[test]
fn a_path_in_a_list_needs_a_mirror_to_start_from() {
    let host = Host::new();
    let pinned = host.path("pinned.json");
    fs::write(&pinned, list(&[component("bin/kubelet", KUBELET)])).unwrap();
    let error = stderr(&create(&host, &["--list", pinned.to_str().unwrap()]));
    assert!(error.contains("bin/kubelet") && error.contains("--from"), "{error}");
}
