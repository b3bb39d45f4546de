//! https: certificates that are trusted, by the system or because the user says so, and those that are not.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;

use aztec_cache_test_support::s3::S3Server;
use rcgen::CertifiedKey;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use crate::common::{Place, errno, key, needs_fuse, wait_for};

/// TLS in front of a server that has none, with a certificate for `127.0.0.1` that nobody else signed.
pub struct TlsFront {
    addr: SocketAddr,
    pub pem: String,
    _runtime: Runtime,
}

impl TlsFront {
    pub fn of(upstream: SocketAddr) -> TlsFront {
        let CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate");
        let key = PrivateKeyDer::try_from(signing_key.serialize_der()).expect("a key");
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .expect("TLS versions")
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .expect("a certificate and its key");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a thread");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a loopback port");
        let addr = listener.local_addr().expect("an address");
        runtime.spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(forward(acceptor.clone(), client, upstream));
            }
        });
        TlsFront { addr, pem: cert.pem(), _runtime: runtime }
    }

    pub fn url(&self) -> String {
        format!("https://{}", self.addr)
    }
}

/// Ends when either side closes or the client doesn't like the certificate.
async fn forward(acceptor: TlsAcceptor, client: TcpStream, upstream: SocketAddr) -> std::io::Result<()> {
    let mut client = acceptor.accept(client).await?;
    let mut server = TcpStream::connect(upstream).await?;
    tokio::io::copy_bidirectional(&mut client, &mut server).await.map(drop)
}

fn serve() -> (S3Server, TlsFront) {
    let server = S3Server::start();
    server.put(&key("noir-1.tar.gz"), "bytes");
    let front = TlsFront::of(server.addr());
    (server, front)
}

#[track_caller]
fn assert_reads(place: &Place) {
    let mount = place.mount();
    assert_eq!(mount.read("noir-1.tar.gz").unwrap(), b"bytes", "{}", mount.said());
    assert!(!mount.said().contains("warning"), "{}", mount.said());
    mount.unmount();
}

#[test]
fn a_ca_bundle_is_trusted() {
    needs_fuse!();
    let (_server, front) = serve();
    for how in ["--ca-bundle", "S3_BUILD_CACHE_AWS_PARAMS", "AWS_CA_BUNDLE"] {
        let mut place = Place::new(&front.url());
        let bundle = place.dir.path().join("bundle.pem");
        fs::write(&bundle, format!("# ours\n{}", front.pem)).unwrap();
        match how {
            "--ca-bundle" => place.arg(how).arg(&bundle),
            "AWS_CA_BUNDLE" => place.env(how, &bundle),
            _ => place.env(how, format!("--ca-bundle '{}'", bundle.display())),
        };
        assert_reads(&place);
    }
}

#[test]
fn unchecked_when_the_user_says_so() {
    needs_fuse!();
    let (_server, front) = serve();
    let mut by_flag = Place::new(&front.url());
    by_flag.arg("--no-verify-ssl");
    assert_reads(&by_flag);
    let mut by_params = Place::new(&front.url());
    by_params.env("S3_BUILD_CACHE_AWS_PARAMS", "--no-verify-ssl");
    assert_reads(&by_params);
}

#[test]
fn a_certificate_that_is_not_trusted_is_unreachable() {
    needs_fuse!();
    let (server, front) = serve();
    let (_other_server, other) = serve();
    let mut place = Place::new(&front.url());
    // The bundle of another server stands for the system's.
    let bundle = place.dir.path().join("bundle.pem");
    fs::write(&bundle, &other.pem).unwrap();
    place.arg("--ca-bundle").arg(&bundle);
    let mount = place.mount();
    wait_for("the warning", || mount.said().contains("warning"));
    assert!(mount.said().contains("certificate"), "{}", mount.said());
    assert_eq!(errno(mount.read("noir-1.tar.gz")), libc::EHOSTUNREACH);
    assert_eq!(server.counts().requests(), 0);
    mount.unmount();
}

#[test]
fn https_to_a_server_without_tls_is_unreachable() {
    needs_fuse!();
    let (server, _) = serve();
    let place = Place::new(&format!("https://{}", server.addr()));
    let mount = place.mount();
    assert_eq!(errno(mount.read("noir-1.tar.gz")), libc::EHOSTUNREACH);
    mount.unmount();
}
