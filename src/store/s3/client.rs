//! The SDK's client: credentials, region, time-outs, retries.

use std::sync::OnceLock;
use std::time::Duration;

use aws_config::BehaviorVersion;
use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::ecs::EcsCredentialsProvider;
use aws_config::environment::credentials::EnvironmentVariableCredentialsProvider;
use aws_config::environment::region::EnvironmentVariableRegionProvider;
use aws_config::imds;
use aws_config::imds::credentials::ImdsCredentialsProvider;
use aws_config::meta::credentials::CredentialsProviderChain;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::{ProfileFileCredentialsProvider, ProfileFileRegionProvider};
use aws_config::provider_config::ProviderConfig;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    Builder, Region, RequestChecksumCalculation, ResponseChecksumValidation, SharedHttpClient,
    StalledStreamProtectionConfig,
};
use aws_smithy_runtime_api::client::http::{SharedHttpConnector, http_client_fn};

use crate::config::S3Options;
use crate::error::chain;
use crate::store::s3::connector::Connector;

/// How often a question is asked at most: it is what a `lookup` waits for.
const ATTEMPTS: u32 = 3;
/// The instance metadata service answers within milliseconds, or isn't there (on a laptop).
const IMDS_TIMEOUT: Duration = Duration::from_millis(500);

/// The client, and whether it signs.
pub struct S3Client {
    config: Builder,
    // Each is made for the first who needs it, which takes a while.
    sdk: OnceLock<Client>,
    once: OnceLock<Client>,
    upload: OnceLock<Client>,
    pub signed: bool,
    /// Whether Amazon's own S3 is asked, not another server that speaks its language.
    pub is_amazon: bool,
}

impl S3Client {
    /// Asks again when that may help.
    pub fn sdk(&self) -> &Client {
        self.sdk.get_or_init(|| Client::from_conf(self.config.clone().build()))
    }

    /// Asks only once.
    pub fn once(&self) -> &Client {
        self.once.get_or_init(|| Client::from_conf(self.asking_once().build()))
    }

    /// Asks only once and waits without an end: whoever sends a body knows whether it gets on.
    pub fn upload(&self) -> &Client {
        let patient = || self.asking_once().timeout_config(TimeoutConfig::disabled());
        self.upload.get_or_init(|| Client::from_conf(patient().build()))
    }

    fn asking_once(&self) -> Builder {
        self.config.clone().retry_config(RetryConfig::disabled())
    }
}

/// Finds region and credentials and makes the client. Doesn't fail: credentials that can't be loaded fail each
/// request that needs them.
pub async fn connect(options: &S3Options, connector: Connector) -> S3Client {
    let (http, plain_http) = (http_client(connector.clone()), http_client(connector.uncounted()));
    let region = region(options).await;
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .region(region.clone())
        .http_client(http)
        .timeout_config(
            TimeoutConfig::builder()
                .operation_attempt_timeout(options.patience.first_byte)
                .operation_timeout(options.patience.first_byte * 2)
                .build(),
        )
        .retry_config(
            RetryConfig::standard()
                .with_max_attempts(options.patience.attempts.min(ATTEMPTS))
                .with_initial_backoff(Duration::from_millis(100))
                .with_max_backoff(Duration::from_secs(2)),
        )
        // Bodies are watched by the download, which can go on from where one broke.
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        // Several servers reject the newer trailing checksums.
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
    if let Some(url) = &options.endpoint_url {
        loader = loader.endpoint_url(url);
    }
    let credentials =
        if options.no_sign_request { None } else { credentials(options, plain_http, region).await };
    let signed = credentials.is_some();
    loader = match credentials {
        Some(chain) => loader.credentials_provider(chain),
        None => loader.no_credentials(),
    };
    if let Some(profile) = &options.profile {
        loader = loader.profile_name(profile);
    }
    let shared = loader.load().await;
    let is_amazon = shared.endpoint_url().is_none();
    let path_style = options.force_path_style || !is_amazon;
    let config = Builder::from(&shared).force_path_style(path_style);
    let config = if signed { config } else { config.allow_no_auth() };
    let (sdk, once, upload) = (OnceLock::new(), OnceLock::new(), OnceLock::new());
    S3Client { config, sdk, once, upload, signed, is_amazon }
}

fn http_client(connector: Connector) -> SharedHttpClient {
    http_client_fn(move |_, _| SharedHttpConnector::new(connector.clone()))
}

/// The region in force. The metadata service isn't asked: it knows where this machine is, not where the bucket is.
async fn region(options: &S3Options) -> Region {
    let mut profile = ProfileFileRegionProvider::builder();
    if let Some(name) = &options.profile {
        profile = profile.profile_name(name);
    }
    RegionProviderChain::first_try(options.region.clone().map(Region::new))
        .or_else(EnvironmentVariableRegionProvider::new())
        .or_else(profile.build())
        .or_else(Region::new("us-east-2"))
        .region()
        .await
        .unwrap_or(Region::new("us-east-2"))
}

/// The credentials in force; None when there are none anywhere. Those of a profile that was asked for go before the
/// environment's, as with the AWS CLI, and it is an error if it has none.
async fn credentials(
    options: &S3Options,
    http: SharedHttpClient,
    region: Region,
) -> Option<SharedCredentialsProvider> {
    // What the chain asks first; to set up the rest of it takes as long as a request.
    if options.profile.is_none()
        && let Ok(found) = EnvironmentVariableCredentialsProvider::new().provide_credentials().await
    {
        return Some(SharedCredentialsProvider::new(found));
    }
    let provider_config = ProviderConfig::default().with_http_client(http).with_region(Some(region.clone()));
    let imds = imds::Client::builder()
        .configure(&provider_config)
        .connect_timeout(IMDS_TIMEOUT)
        .read_timeout(IMDS_TIMEOUT)
        .operation_attempt_timeout(IMDS_TIMEOUT)
        .max_attempts(1)
        .build();
    let provider = match &options.profile {
        Some(name) => SharedCredentialsProvider::new(of_profile(name, &provider_config, imds)),
        None => {
            let chain = DefaultCredentialsChain::builder().configure(provider_config).region(region);
            SharedCredentialsProvider::new(chain.imds_client(imds).build().await)
        }
    };
    match provider.provide_credentials().await {
        Err(CredentialsError::CredentialsNotLoaded(_)) if options.profile.is_none() => {
            log::info!("no AWS credentials found: requests are not signed");
            return None;
        }
        Err(e) => {
            let name = options.profile.as_ref().map(|name| format!(" from the profile '{name}'"));
            log::warn!(
                "AWS credentials can't be loaded{}: {}; check --profile and the AWS variables",
                name.unwrap_or_default(),
                chain(&e)
            );
        }
        Ok(_) => {}
    }
    Some(provider)
}

/// The profile `name`, or for one that says nothing of credentials, what the machine has.
fn of_profile(name: &str, config: &ProviderConfig, imds: imds::Client) -> CredentialsProviderChain {
    let profile = ProfileFileCredentialsProvider::builder().configure(config).profile_name(name).build();
    let container = EcsCredentialsProvider::builder().configure(config).build();
    let machine = ImdsCredentialsProvider::builder().configure(config).imds_client(imds).build();
    CredentialsProviderChain::first_try("Profile", profile)
        .or_else("EcsContainer", container)
        .or_else("Ec2InstanceMetadata", machine)
}
