//! HTTP/1.1 and TLS, over hyper and rustls: what every remote on the network is asked through.

use std::error::Error as StdError;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Body;
use hyper::{Method, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::config::S3Options;
use crate::error::{Error, Result, causes};
use crate::metrics::REQUESTS;

/// Connections kept for reuse; S3 closes idle ones after about 20 s.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);
/// What a connection reads at a time, at most. hyper's own limit is 400 KiB, kept by each of up to 80 connections.
const READ_BUFFER: usize = 128 << 10;
const IDLE_CONNECTIONS: usize = 64;

/// A pool of connections for requests with bodies of type `B`. Clones share it.
pub type Pool<B> = Client<HttpsConnector<HttpConnector>, B>;

/// Why no answer came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// It took too long.
    TimedOut,
    /// What came isn't HTTP.
    NotHttp,
    /// No connection, or one that broke: DNS, routes, TLS, resets.
    Io,
}

/// A pool without connections yet.
///
/// # Errors
/// A CA bundle that can't be read or holds no certificate.
pub fn pool<B>(options: &S3Options) -> Result<Pool<B>>
where
    B: Body<Data = Bytes> + Send,
{
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(options.patience.connect));
    // What a request that was given up left in a connection isn't offered for longer to who doesn't take it.
    tcp.set_tcp_user_timeout(Some(options.patience.first_byte + options.patience.stall));
    let https = HttpsConnectorBuilder::new()
        .with_tls_config(tls_config(options)?)
        .https_or_http()
        .enable_http1()
        .wrap_connector(tcp);
    Ok(Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(IDLE_CONNECTIONS)
        .http1_max_buf_size(READ_BUFFER)
        .build(https))
}

/// Counts a request that is about to be sent, by what S3 means by it; to other servers that is the same.
pub fn count(method: &Method, uri: &Uri) {
    let lists = || uri.query().is_some_and(|query| query.contains("list-type="));
    match *method {
        Method::HEAD => REQUESTS.head.count(),
        Method::GET if lists() => REQUESTS.list.count(),
        Method::GET => REQUESTS.get.count(),
        Method::DELETE => REQUESTS.delete.count(),
        _ => REQUESTS.put.count(),
    }
}

/// What kind of trouble `error` was.
pub fn trouble(error: &(dyn StdError + 'static)) -> Trouble {
    let timed_out = |e: &(dyn StdError + 'static)| {
        e.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::TimedOut)
            || e.downcast_ref::<hyper::Error>().is_some_and(|e| e.is_timeout())
    };
    if causes(error).any(timed_out) {
        Trouble::TimedOut
    } else if causes(error).any(|e| e.downcast_ref::<hyper::Error>().is_some_and(|e| e.is_parse())) {
        Trouble::NotHttp
    } else {
        Trouble::Io
    }
}

fn tls_config(options: &S3Options) -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::usage(format!("TLS: {e}; this build has no usable TLS version")))?;
    if options.no_verify_ssl {
        let verifier = Arc::new(NoVerification(provider));
        return Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth());
    }
    let mut roots = RootCertStore::empty();
    match &options.ca_bundle {
        Some(path) => add_bundle(&mut roots, path)?,
        None => {
            let found = rustls_native_certs::load_native_certs();
            let (added, _) = roots.add_parsable_certificates(found.certs);
            if added == 0 {
                log::info!(
                    "no CA certificates on this machine: https remotes will be refused; install ca-certificates"
                );
            }
        }
    }
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

fn add_bundle(roots: &mut RootCertStore, path: &Path) -> Result<()> {
    let error = |why: String| {
        Error::usage(format!("--ca-bundle: {}: {why}; name a file of PEM certificates", path.display()))
    };
    let certificates = CertificateDer::pem_file_iter(path).map_err(|e| error(e.to_string()))?;
    for certificate in certificates {
        let certificate = certificate.map_err(|e| error(e.to_string()))?;
        roots.add(certificate).map_err(|e| error(e.to_string()))?;
    }
    if roots.is_empty() { Err(error("no certificate in it".to_owned())) } else { Ok(()) }
}

/// `--no-verify-ssl`: any certificate will do, as the AWS CLI's option of that name has it.
#[derive(Debug)]
struct NoVerification(Arc<CryptoProvider>);

impl ServerCertVerifier for NoVerification {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
