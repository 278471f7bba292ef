#include "sha256.hpp"

#include <fcntl.h>
#include <openssl/evp.h>
#include <unistd.h>

#include <array>
#include <memory>
#include <vector>

#include "error.hpp"

namespace posecrafter {
namespace {

struct File {
    explicit File(const std::filesystem::path& path) : descriptor(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {}
    File(const File&) = delete;
    File& operator=(const File&) = delete;
    ~File() {
        if (descriptor >= 0) ::close(descriptor);
    }
    int descriptor;
};

using Digest = std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)>;

Digest begin() {
    Digest digest(EVP_MD_CTX_new(), EVP_MD_CTX_free);
    if (!digest || EVP_DigestInit_ex(digest.get(), EVP_sha256(), nullptr) != 1)
        throw Error(Kind::internal, "sha256", "OpenSSL has no SHA-256 here; check its configuration");
    return digest;
}

std::string finish(const Digest& digest) {
    std::array<unsigned char, EVP_MAX_MD_SIZE> bytes{};
    unsigned size = 0;
    EVP_DigestFinal_ex(digest.get(), bytes.data(), &size);
    std::string hex;
    for (unsigned i = 0; i < size; ++i) {
        hex += "0123456789abcdef"[bytes[i] >> 4];
        hex += "0123456789abcdef"[bytes[i] & 15];
    }
    return hex;
}

}  // namespace

std::string sha256_of(const std::filesystem::path& path) {
    const File file(path);
    const Digest digest = begin();
    std::vector<unsigned char> block(1 << 18);
    ssize_t count = 0;
    while ((count = ::read(file.descriptor, block.data(), block.size())) > 0)
        EVP_DigestUpdate(digest.get(), block.data(), static_cast<std::size_t>(count));
    if (count < 0)
        throw Error(Kind::bundle, "bundle-file-missing", text(path.string(), " cannot be read; check its permissions"));
    return finish(digest);
}

std::string sha256_of_text(std::string_view bytes) {
    const Digest digest = begin();
    EVP_DigestUpdate(digest.get(), bytes.data(), bytes.size());
    return finish(digest);
}

}  // namespace posecrafter
