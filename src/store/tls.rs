//! TLS as every remote on the network gets it: rustls, with the system's certificates unless told otherwise.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ConfigBuilder, DigitallySignedStruct, RootCertStore, SignatureScheme, WantsVerifier,
};
use tokio::sync::OnceCell;

use crate::answer::blocking;
use crate::config::S3Options;
use crate::error::{Error, Result};

/// Whom to trust. The system's certificates, of which there are over a hundred, are read when they are first asked for.
pub struct Tls {
    config: OnceCell<Arc<ClientConfig>>,
}

impl Tls {
    /// As `options` say.
    ///
    /// # Errors
    /// A CA bundle that can't be read or holds no certificate.
    pub fn new(options: &S3Options) -> Result<Tls> {
        let known = match &options.ca_bundle {
            _ if options.no_verify_ssl => Some(unverified()?),
            Some(path) => Some(verified(bundle(path)?)?),
            None => None,
        };
        Ok(Tls { config: OnceCell::new_with(known.map(Arc::new)) })
    }

    /// What a connection needs.
    ///
    /// # Errors
    /// The program is ending.
    pub async fn config(&self) -> Result<Arc<ClientConfig>> {
        let load = || async { Ok(Arc::new(blocking(|| verified(system_roots())).await??)) };
        self.config.get_or_try_init(load).await.cloned()
    }
}

fn verified(roots: RootCertStore) -> Result<ClientConfig> {
    Ok(builder()?.with_root_certificates(roots).with_no_client_auth())
}

fn unverified() -> Result<ClientConfig> {
    let verifier = Arc::new(NoVerification(provider()));
    let builder = builder()?.dangerous().with_custom_certificate_verifier(verifier);
    Ok(builder.with_no_client_auth())
}

fn builder() -> Result<ConfigBuilder<ClientConfig, WantsVerifier>> {
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    builder.map_err(|e| Error::usage(format!("TLS: {e}; this build has no usable TLS version")))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if added == 0 {
        log::warn!("no CA certificates on this machine: https remotes are refused; install ca-certificates");
    }
    roots
}

fn bundle(path: &Path) -> Result<RootCertStore> {
    let error = |why: String| {
        Error::usage(format!("--ca-bundle: {}: {why}; name a file of PEM certificates", path.display()))
    };
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(path).map_err(|e| error(e.to_string()))?;
    for certificate in certificates {
        let certificate = certificate.map_err(|e| error(e.to_string()))?;
        roots.add(certificate).map_err(|e| error(e.to_string()))?;
    }
    if roots.is_empty() { Err(error("no certificate in it".to_owned())) } else { Ok(roots) }
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
