use super::*;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::json;

const ISSUER: &str = "https://id.example.com";
const NOW: i64 = 1_800_000_000;

fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

struct Signer {
    pair: EcdsaKeyPair,
    random: SystemRandom,
}

impl Signer {
    fn new() -> Self {
        let random = SystemRandom::new();
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let key = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, key.as_ref(), &random).unwrap();
        Self { pair, random }
    }

    fn jwks(&self) -> String {
        let point = self.pair.public_key().as_ref();
        json!({"keys": [{
            "kty": "EC", "crv": "P-256", "kid": "k1", "use": "sig", "alg": "ES256",
            "x": b64(&point[1..33]), "y": b64(&point[33..]),
        }]})
        .to_string()
    }

    fn sign(&self, header: &Value, claims: &Value) -> String {
        let message = format!("{}.{}", b64(header.to_string()), b64(claims.to_string()));
        let signature = self.pair.sign(&self.random, message.as_bytes()).unwrap();
        format!("{message}.{}", b64(signature))
    }

    fn token(&self, claims: &Value) -> String {
        self.sign(&json!({"alg": "ES256", "kid": "k1"}), claims)
    }

    /// The authenticator that believes this signer.
    fn oidc(&self, config: &Value) -> Oidc {
        let mut given = json!({
            "issuer_url": ISSUER, "client_ids": ["godwit"], "signing_algs": ["ES256"],
        });
        for (key, value) in config.as_object().unwrap() {
            given[key] = value.clone();
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("jwks.json");
        std::fs::write(&file, self.jwks()).unwrap();
        given["jwks_file"] = json!(file);
        let config: OidcConfig = serde_json::from_value(given).unwrap();
        let stopped = CancellationToken::new();
        stopped.cancel();
        Oidc::start(&config, stopped).unwrap()
    }
}

fn claims(with: &Value) -> Value {
    let mut claims = json!({"iss": ISSUER, "aud": "godwit", "sub": "7", "exp": NOW + 60});
    for (key, value) in with.as_object().unwrap() {
        claims[key] = value.clone();
    }
    claims
}

async fn ask(oidc: &Oidc, token: &str) -> Result<UserInfo, String> {
    let now = Timestamp::from_second(NOW).unwrap();
    oidc.user(token, now).await.map_err(|why| why.to_string())
}

#[tokio::test]
async fn a_token_names_its_user_with_the_prefixes() {
    let signer = Signer::new();
    let plain = signer.oidc(&json!({}));
    let user = ask(&plain, &signer.token(&claims(&json!({"jti": "j"}))))
        .await
        .unwrap();
    assert_eq!(user.name, "https://id.example.com#7");
    assert_eq!(user.extra[CREDENTIAL_ID], ["JTI=j"]);

    let full = signer.oidc(&json!({
        "username_claim": "email", "groups_claim": "roles", "groups_prefix": "id:",
    }));
    let token = claims(&json!({"email": "a@b.c", "roles": ["x", "y"], "aud": ["z", "godwit"]}));
    let user = ask(&full, &signer.token(&token)).await.unwrap();
    assert_eq!(
        (user.name.as_str(), user.groups.as_slice()),
        ("a@b.c", &["id:x".into(), "id:y".into()][..])
    );
    let one = claims(&json!({"email": "a@b.c", "roles": "x"}));
    assert_eq!(
        ask(&full, &signer.token(&one)).await.unwrap().groups,
        ["id:x"]
    );

    let dash = signer.oidc(&json!({"username_prefix": "-"}));
    assert_eq!(
        ask(&dash, &signer.token(&claims(&json!({}))))
            .await
            .unwrap()
            .name,
        "7"
    );
}

#[tokio::test]
async fn claims_that_are_wrong_are_refused_each_with_its_reason() {
    let signer = Signer::new();
    let config = json!({
        "username_claim": "email", "groups_claim": "roles", "required_claims": {"hd": "b.c"},
    });
    let oidc = signer.oidc(&config);
    let good = json!({"email": "a@b.c", "hd": "b.c", "email_verified": true});
    assert!(ask(&oidc, &signer.token(&claims(&good))).await.is_ok());
    let cases = [
        (json!({"iss": "https://other"}), "is not ours"),
        (json!({"aud": "other"}), "meant for"),
        (json!({"aud": null}), "meant for"),
        (json!({"aud": {"godwit": true}}), "meant for"),
        (json!({"exp": NOW}), "expired"),
        (json!({"exp": (NOW + 60).to_string()}), "\"exp\""),
        (json!({"exp": null}), "\"exp\""),
        (json!({"nbf": NOW + 301}), "not good before"),
        (json!({"nbf": "soon"}), "\"nbf\""),
        (json!({"email": 7}), "\"email\""),
        (json!({"email": ""}), "\"email\""),
        (json!({"email_verified": false}), "not verified"),
        (json!({"email_verified": "true"}), "not verified"),
        (json!({"roles": [1]}), "\"roles\""),
        (json!({"hd": "other"}), "\"hd\""),
    ];
    for (with, why) in cases {
        let mut claims = claims(&good);
        for (key, value) in with.as_object().unwrap() {
            claims[key] = value.clone();
        }
        let refused = ask(&oidc, &signer.token(&claims)).await.unwrap_err();
        assert!(refused.contains(why), "{with}: {refused}");
    }
    let mut early = claims(&good);
    early["nbf"] = json!(NOW + 299);
    assert!(ask(&oidc, &signer.token(&early)).await.is_ok());
}

#[tokio::test]
async fn only_the_issuers_own_signature_counts() {
    let signer = Signer::new();
    let oidc = signer.oidc(&json!({}));
    let claims = claims(&json!({}));
    // Without a key id each key is tried.
    let unnamed = signer.sign(&json!({"alg": "ES256"}), &claims);
    assert!(ask(&oidc, &unnamed).await.is_ok());

    let good = signer.token(&claims);
    let (message, signature) = good.rsplit_once('.').unwrap();
    let jwk = json!({"alg": "ES256", "kid": "k1", "crit": ["x"]});
    let cases = [
        (Signer::new().token(&claims), "signature is wrong"),
        (format!("{message}."), "signature is wrong"),
        (
            signer.sign(&json!({"alg": "ES256", "kid": "k2"}), &claims),
            "key id",
        ),
        (signer.sign(&json!({"alg": "none"}), &claims), "algorithm"),
        (
            signer.sign(&json!({"alg": "HS256", "kid": "k1"}), &claims),
            "algorithm",
        ),
        (
            signer.sign(&json!({"alg": "RS256", "kid": "k1"}), &claims),
            "algorithm",
        ),
        (signer.sign(&jwk, &claims), "extensions"),
        (format!("a.{signature}.b"), "no JSON Web Token"),
        ("x".repeat(TOKEN_BYTES_MAX + 1), "no JSON Web Token"),
    ];
    for (token, why) in cases {
        let refused = ask(&oidc, &token).await.unwrap_err();
        assert!(refused.contains(why), "{why}: {refused}");
    }
}

#[test]
fn a_configuration_that_could_not_work_is_refused() {
    let good = json!({"issuer_url": ISSUER, "client_ids": ["godwit"]});
    for (key, value) in [
        ("issuer_url", json!("http://id.example.com")),
        ("client_ids", json!([])),
        ("signing_algs", json!(["HS256"])),
        ("signing_algs", json!(["none"])),
        ("signing_algs", json!([])),
        ("ca_file", json!("/nowhere")),
        ("jwks_file", json!("/nowhere")),
    ] {
        let mut config = good.clone();
        config[key] = value;
        let config: OidcConfig = serde_json::from_value(config).unwrap();
        assert!(
            Oidc::start(&config, CancellationToken::new()).is_err(),
            "{key}"
        );
    }
}
