//! What the pods of the VM suite run: a server, a client, and something that breaks its node's network.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use axum::routing::get;
use clap::Parser;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, UnixStream};

/// Kept short, so that callers can tell a slow answer from none.
const TIMEOUT: Duration = Duration::from_secs(10);

/// One action of a test pod.
#[derive(Parser)]
enum Action {
    /// Answer `/` with a text, and `/load` with that text many times over.
    Serve {
        /// The port, on all addresses.
        #[arg(long, default_value_t = 8080)]
        port: u16,
        /// The text to answer with.
        #[arg(long)]
        text: String,
    },
    /// Print what an address answers, or fail.
    Fetch {
        /// The address to ask.
        url: String,
    },
    /// Forward connections to a Unix socket.
    Forward {
        /// The port, on all addresses.
        #[arg(long)]
        port: u16,
        /// The socket that they are forwarded to.
        #[arg(long)]
        to: PathBuf,
    },
    /// Print a file.
    Read {
        /// The file to read.
        path: PathBuf,
    },
    /// Write a text into a file, for instance a setting of the kernel.
    Write {
        /// The file to write to.
        path: PathBuf,
        /// The text to write.
        text: String,
    },
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    match Action::parse() {
        Action::Serve { port, text } => serve(port, text).await,
        Action::Fetch { url } => fetch(&url).await,
        Action::Forward { port, to } => forward(port, to).await,
        Action::Read { path } => read(&path),
        Action::Write { path, text } => fs::write(&path, text).with_context(|| format!("writing {}", path.display())),
    }
}

async fn serve(port: u16, text: String) -> Result<()> {
    /// More than one packet, and more than one copy in each.
    const COPIES: usize = 1000;
    let load = format!("{text}\n").repeat(COPIES);
    let router = Router::new()
        .route("/", get(async move || text))
        .route("/load", get(async move || load));
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await?;
    Ok(axum::serve(listener, router).await?)
}

#[expect(clippy::print_stderr, reason = "a test reads it in the pod's log")]
async fn forward(port: u16, to: PathBuf) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await?;
    loop {
        let (mut caller, _) = listener.accept().await?;
        let to = to.clone();
        tokio::spawn(async move {
            match UnixStream::connect(&to).await {
                Ok(mut service) => drop(copy_bidirectional(&mut caller, &mut service).await),
                Err(error) => eprintln!("{}: {error}", to.display()),
            }
        });
    }
}

#[expect(clippy::print_stdout, reason = "the content is the result")]
fn read(path: &Path) -> Result<()> {
    let content = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    print!("{content}");
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the answer is the result")]
async fn fetch(url: &str) -> Result<()> {
    // The image has nothing but this program, and no certificates in particular; a client that looks for them does not start.
    let client = reqwest::Client::builder().tls_certs_only([]).timeout(TIMEOUT).build()?;
    let response = client.get(url).send().await?.error_for_status()?;
    println!("{}", response.text().await?);
    Ok(())
}
