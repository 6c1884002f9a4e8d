//! What a session costs: attested handshakes against plain mutual TLS 1.3 handshakes, in the same run.
//!
//! Evidence is signed by a key in this process, so that the figures are ours and not a TPM's.

#![allow(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result, anyhow};
use attestation::{ExpectedMembership, Purpose};
use attested_tls::{Endpoint, PeerPolicy};
use rcgen::{CertificateParams, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use test_figures::{Clock, Samples, Table};
use test_machines::{InProcessAttester, SOFTWARE_TPM, verifiers};
use tokio::io::{AsyncRead, AsyncWrite, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{self, Runtime};
use tokio_rustls::{TlsAcceptor, TlsConnector};

const ROUNDS: usize = 400;

/// One kind of handshake, both ends.
trait Handshake: Sync {
    async fn connect(&self, stream: impl AsyncRead + AsyncWrite + Send + Unpin) -> Result<()>;
    async fn accept(&self, stream: impl AsyncRead + AsyncWrite + Send + Unpin) -> Result<()>;
}

/// Sessions in which both sides attest, as at a join.
struct Attested {
    client: Endpoint,
    server: Endpoint,
}

/// Sessions in which both sides show a certificate.
struct Plain {
    client: TlsConnector,
    server: TlsAcceptor,
}

fn main() -> Result<()> {
    let (plain, attested) = (Plain::new()?, Attested::new());
    let ends = (both_ends(&plain)?, both_ends(&attested)?);
    let cpu = (server_cpu(&plain)?, server_cpu(&attested)?);

    let mut table = Table::new("Handshakes", &["p50", "p99", "per s, core"]);
    table.samples("mutual TLS 1.3, both ends", &ends.0, []);
    table.samples("attested by both sides, both ends", &ends.1, []);
    table.samples("mutual TLS 1.3, server's CPU", &cpu.0, []);
    let aim = "aim: at most 0.8 ms without the TPM's own time".to_owned();
    table.samples("attested by both sides, server's CPU", &cpu.1, [aim]);
    table.note(format!(
        "attested / mutual TLS 1.3: {:.2} for both ends, {:.2} for the server's CPU",
        ends.1.ratio_to(&ends.0),
        cpu.1.ratio_to(&cpu.0)
    ));
    table.note("The server's CPU includes its sockets, and not the signing of its quote: that is a TPM's work.");
    println!("{table}");
    Ok(())
}

/// The time of a handshake whose ends take turns in this process.
fn both_ends(kind: &impl Handshake) -> Result<Samples> {
    runtime()?.block_on(Samples::take_async(Clock::Wall, ROUNDS, async || {
        let (near, far) = duplex(64 * 1024);
        tokio::try_join!(kind.connect(near), kind.accept(far))?;
        Ok(())
    }))
}

/// What a handshake over TCP costs the thread of a server. Quotes are made by another thread, as everywhere.
fn server_cpu(kind: &impl Handshake) -> Result<Samples> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    thread::scope(|scope| {
        let server = scope.spawn(|| serve(kind, listener));
        runtime()?.block_on(call(kind, address))?;
        server.join().map_err(|_| anyhow!("the server panicked"))?
    })
}

fn serve(kind: &impl Handshake, listener: std::net::TcpListener) -> Result<Samples> {
    runtime()?.block_on(async {
        let listener = TcpListener::from_std(listener)?;
        Samples::take_async(Clock::ThisThread, ROUNDS, async || {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            kind.accept(stream).await
        })
        .await
    })
}

/// As many calls as the server serves.
async fn call(kind: &impl Handshake, server: SocketAddr) -> Result<Samples> {
    Samples::take_async(Clock::Wall, ROUNDS, async || {
        let stream = TcpStream::connect(server).await?;
        stream.set_nodelay(true)?;
        kind.connect(stream).await
    })
    .await
}

fn runtime() -> Result<Runtime> {
    runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting a runtime")
}

impl Attested {
    fn new() -> Self {
        let side = || {
            let peer = PeerPolicy::Attested(Arc::new(verifiers(SOFTWARE_TPM, ExpectedMembership::New)));
            Endpoint::new(Some(Arc::new(InProcessAttester::generate())), peer)
        };
        Self {
            client: side(),
            server: side(),
        }
    }
}

impl Handshake for Attested {
    async fn connect(&self, stream: impl AsyncRead + AsyncWrite + Send + Unpin) -> Result<()> {
        self.client.connect(Purpose::Join, stream).await?;
        Ok(())
    }

    async fn accept(&self, stream: impl AsyncRead + AsyncWrite + Send + Unpin) -> Result<()> {
        self.server.accept(&[Purpose::Join], stream).await?;
        Ok(())
    }
}

impl Plain {
    /// One certificate of an ECDSA key serves both sides and is its own authority.
    fn new() -> Result<Self> {
        let key = rcgen::KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = CertificateParams::new(["peer".to_owned()])?.self_signed(&key)?;
        let private_key = || PrivateKeyDer::Pkcs8(key.serialize_der().into());
        Ok(Self {
            client: TlsConnector::from(Arc::new(client_config(certificate.der(), private_key())?)),
            server: TlsAcceptor::from(Arc::new(server_config(certificate.der(), private_key())?)),
        })
    }
}

impl Handshake for Plain {
    async fn connect(&self, stream: impl AsyncRead + AsyncWrite + Send + Unpin) -> Result<()> {
        self.client.connect(ServerName::try_from("peer")?, stream).await?;
        Ok(())
    }

    async fn accept(&self, stream: impl AsyncRead + AsyncWrite + Send + Unpin) -> Result<()> {
        self.server.accept(stream).await?;
        Ok(())
    }
}

fn client_config(certificate: &CertificateDer<'static>, key: PrivateKeyDer<'static>) -> Result<ClientConfig> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots(certificate)?)
        .with_client_auth_cert(vec![certificate.clone()], key)?;
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

fn server_config(certificate: &CertificateDer<'static>, key: PrivateKeyDer<'static>) -> Result<ServerConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let clients = WebPkiClientVerifier::builder_with_provider(roots(certificate)?, provider.clone()).build()?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(clients)
        .with_single_cert(vec![certificate.clone()], key)?;
    // As in attested sessions: none is ever resumed.
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn roots(certificate: &CertificateDer<'static>) -> Result<Arc<RootCertStore>> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone())?;
    Ok(Arc::new(roots))
}
