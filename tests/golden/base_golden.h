/* Written by tests/golden/make_base.py: do not edit. */
#define GOLDEN_N_BATCHES 4
#define GOLDEN_N_STRINGS 3000
#define GOLDEN_N_NUMBERS 5000
#define GOLDEN_N_TEXTS 400
static const char *const golden_utf8[] = {
    "22b714884aca438a46cdbb60fdbf16c83fcf20f9a98a20eb58382d08263b9c23",
    "20baa227dc35ffa073faf3941ce81253a94d986c0ec7cdc61c85897a01bcaedd",
    "4239f45c0a408f5cb89c65121c5eba36a1493462a1d03f543e0acf5d09b23d82",
    "6f150bb25d528d997ce1a6dd2d4b3f269d694b3ed0b8746fd631b59160a951d0",
};
static const char *const golden_numbers[] = {
    "2f0f6bcb31734fb4d6cb73e49aacc61f3f320b3108950f6a913260ceeb2e34a5",
    "861297370848d8bd37f4e3ff1d80013fe46e09631e5f74dc52c2dc736d94a637",
    "bd60cf7c8511dbd3221e86cb7b9eef04258e16147575e7a3d3b248791a7aa436",
    "69aa0cee1ae8a15acf7fdc13066eb98f160d29f0ca2aa96003d18a7cc7ba9e7d",
};
static const char *const golden_nfc[] = {
    "6a1ce6fd8ddd0709d6cbbe4f31a937b79e5fe4fae885fa89ea8419267c96ee5f",
    "21daf9fdbf9c592f71a96ff4a98445bfb95715c2b79aa500d805ce1212ed4dd9",
    "879de7fc4b2c3b4a3b414f44bb0ac7bf650215195f5d0c19276bcfc4fc9ad23c",
    "9db878c17b78319386fad11a0ef90235b6642281f24c6c1d933f713934ce81ba",
};
static const char *const golden_nfd[] = {
    "fd49a65a63a6eec940d0ef28f54b1694db00dea0aef788a1d046fd7dbcc35b90",
    "c72863f45168bd80f28b353bde9494b6dcf8c68103ad05fdff394061c9fd5ce5",
    "0a146f1ed948343b83aec7ae6336190aaa4d358dd43353de366f3859fef1e8e3",
    "84ef2e2f27ef9b6fe8588e5d88418ebf398a549adeb46b38f71b33754518dfb0",
};
static const char *const golden_nfkc[] = {
    "ddeb26795c8d12887bc6e908d7d2b08ecfe665bd51c359a9315b37ef3d8b9f6c",
    "481f8bbba10fb271871f8439a28cfd1a72d725800bf8eab29892ccd4d81082f9",
    "770c61d5ae2e252a1b36adc2614b7ca06cc70a04ed5676ca0e0a5f2d4c2cbabb",
    "946cc965eb5a5e9f45735efda72f7d38f69ec1d83e66a3abe2a79287d4091b13",
};
static const char *const golden_nfkd[] = {
    "f6b48599b59786fc6bcd7aca598ef4b1bbbe8da986b2c66ee6425d77e0d22970",
    "1ae99dd8e50389ad43e38d7314b4b86b678f1c4ee27a298a9064f4435dba171f",
    "1583ec744b174e2c04892837f95db079e527de8288b6f53a58840aa741d47bac",
    "1384c9abf5c1b94bcdd75a64bbac0a32c9d3b684dde83da4a1418ba4386bb018",
};
