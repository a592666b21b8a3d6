#include "apps/forge/safetensors.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "forge/base/error.h"

namespace forge::app {
namespace {

using nlohmann::json;

constexpr const char* kMetadata = "__metadata__";
constexpr std::uint64_t kMaxHeader = 100'000'000;  // the format's own limit

struct NamedType {
  const char* name;
  at::ScalarType dtype;
};
constexpr NamedType kTypes[] = {{"F32", at::kFloat}, {"BF16", at::kBFloat16}, {"F16", at::kHalf}};

const char* name_of(at::ScalarType dtype) {
  for (const auto& type : kTypes) {
    if (type.dtype == dtype) return type.name;
  }
  fail("safetensors: cannot write ", dtype, "; fp32, bf16 and fp16 can be written");
}

// A tensor's bytes are [begin, end) of the data, which follows the header.
struct Place {
  std::string dtype;
  std::vector<std::int64_t> shape;
  std::uint64_t begin = 0, end = 0;
};

// Bits of an element, 0 for an unknown type. The layout of a file is checked for all types of the format.
std::uint64_t bits_of(const std::string& dtype) {
  static const std::map<std::string, std::uint64_t> all = {
      {"BOOL", 8},    {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6},     {"U8", 8},          {"I8", 8},
      {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16},
      {"U16", 16},    {"F16", 16},    {"BF16", 16},   {"I32", 32},        {"U32", 32},        {"F32", 32},
      {"C64", 64},    {"F64", 64},    {"I64", 64},    {"U64", 64}};
  const auto found = all.find(dtype);
  return found == all.end() ? 0 : found->second;
}

// One open file and what is said of it when something does not fit.
class Reader {
 public:
  explicit Reader(const std::filesystem::path& path) : path_(path) {
    std::error_code error;
    require(std::filesystem::is_regular_file(path, error), "it is no file");
    file_.open(path, std::ios::binary);
    require(file_.is_open(), "it cannot be opened");
    size_ = std::filesystem::file_size(path, error);
    require(!error && size_ >= 8, "it is shorter than 8 bytes");
    read_header();
    check_layout();
  }

  Shapes shapes() const {
    Shapes result;
    for (const auto& [name, place] : places_) result[name] = place.shape;
    return result;
  }

  std::map<std::string, at::Tensor> tensors(const std::function<bool(const std::string&)>& wanted) {
    std::map<std::string, at::Tensor> result;
    for (const auto& [name, place] : places_)
      if (wanted(name)) result.emplace(name, tensor(name, place));
    return result;
  }

 private:
  template <class... Parts>
  void require(bool ok, const Parts&... parts) const {
    check(ok, "safetensors: ", path_, " is damaged or not of this format: ", parts..., "; copy or download it again");
  }

  // The parser would pass over a byte-order mark, and take a NUL for the end.
  void read_header() {
    std::uint64_t length = 0;
    file_.read(reinterpret_cast<char*>(&length), sizeof length);
    require(length <= kMaxHeader && length <= size_ - 8, "its header would take ", length, " of its ", size_, " bytes");
    std::string text(length, '\0');
    file_.read(text.data(), static_cast<std::streamsize>(length));
    const std::size_t first = text.find_first_not_of(" \t\r\n");
    const bool plain = first != std::string::npos && text[first] == '{' && text.find('\0') == std::string::npos;
    const json header = json::parse(text, nullptr, /*allow_exceptions=*/false);
    require(plain && header.is_object(), "its header is not JSON");
    for (const auto& [name, entry] : header.items()) {
      if (name != kMetadata) places_[name] = place(name, entry);
    }
    if (header.contains(kMetadata)) check_metadata(header[kMetadata]);
    data_ = 8 + length;
  }

  void check_metadata(const json& metadata) const {
    const bool texts =
        metadata.is_object() && std::ranges::all_of(metadata, [](const json& v) { return v.is_string(); });
    require(texts || metadata.is_null(), "its ", kMetadata, " is not a map of texts");
  }

  Place place(const std::string& name, const json& entry) const {
    const auto member = [&](const char* key) { return entry.is_object() ? entry.value(key, json()) : json(); };
    const json dtype = member("dtype"), shape = member("shape"), offsets = member("data_offsets");
    const bool good =
        dtype.is_string() && bits_of(dtype) != 0 && is_sizes(shape) && is_sizes(offsets) && offsets.size() == 2;
    require(good, "its entry for ", name, " is ", entry.dump(), ", which describes no tensor");
    return {dtype, shape, offsets[0], offsets[1]};
  }

  // Whole numbers that are not negative; the largest that have a sign.
  static bool is_sizes(const json& list) {
    constexpr std::uint64_t kLargest = std::numeric_limits<std::int64_t>::max();
    return list.is_array() && std::ranges::all_of(list, [](const json& size) {
             return size.is_number_unsigned() && size.get<std::uint64_t>() <= kLargest;
           });
  }

  // Tensors lie one behind another from the first byte to the last.
  void check_layout() const {
    std::vector<std::pair<std::string, Place>> ordered(places_.begin(), places_.end());
    std::ranges::sort(ordered, {}, [](const auto& entry) { return std::pair(entry.second.begin, entry.second.end); });
    std::uint64_t position = 0;
    for (const auto& [name, place] : ordered) {
      require(place.begin == position && place.begin <= place.end, name, " lies at [", place.begin, ", ", place.end,
              ") and the tensor before it ends at ", position);
      const std::uint64_t bytes = bytes_of(name, place);
      require(place.end - place.begin == bytes, name, " lies at [", place.begin, ", ", place.end, ") and needs ", bytes,
              " bytes");
      position = place.end;
    }
    require(position == size_ - data_, "its tensors end at ", position, " of ", size_ - data_, " bytes of data");
  }

  // Refuses a product that would overflow and one that is no number of bytes.
  std::uint64_t bytes_of(const std::string& name, const Place& place) const {
    std::uint64_t bits = bits_of(place.dtype);
    for (const std::int64_t size : place.shape)
      require(!__builtin_mul_overflow(bits, static_cast<std::uint64_t>(size), &bits), name, " is larger than any file");
    require(bits % 8 == 0, name, " ends within a byte");
    return bits / 8;
  }

  at::Tensor tensor(const std::string& name, const Place& place) {
    at::Tensor result = at::empty(place.shape, dtype_of(name, place.dtype));
    file_.seekg(static_cast<std::streamoff>(data_ + place.begin));
    file_.read(static_cast<char*>(result.mutable_data_ptr()), static_cast<std::streamsize>(result.nbytes()));
    require(file_.good(), name, " cannot be read");
    return result;
  }

  at::ScalarType dtype_of(const std::string& tensor, const std::string& name) const {
    for (const auto& type : kTypes) {
      if (name == type.name) return type.dtype;
    }
    fail("safetensors: ", path_, ": ", tensor, " is of type ", name, "; F32, BF16 and F16 can be read");
  }

  std::filesystem::path path_;
  std::ifstream file_;
  std::uint64_t size_ = 0, data_ = 0;
  std::map<std::string, Place> places_;
};

std::string header_of(const std::vector<NamedTensor>& tensors) {
  nlohmann::ordered_json header = {{kMetadata, {{"format", "pt"}}}};
  std::uint64_t offset = 0;
  for (const auto& [name, tensor] : tensors) {
    const std::uint64_t end = offset + tensor.nbytes();
    header[name] = {
        {"dtype", name_of(tensor.scalar_type())}, {"shape", tensor.sizes().vec()}, {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // the data begins at a multiple of 8
  return text;
}

}  // namespace

std::map<std::string, at::Tensor> read_safetensors(const std::filesystem::path& path,
                                                   const std::function<bool(const std::string&)>& wanted) {
  return Reader(path).tensors(wanted);
}

Shapes read_safetensors_shapes(const std::filesystem::path& path) { return Reader(path).shapes(); }

void write_safetensors(const std::filesystem::path& path, const std::vector<NamedTensor>& tensors) {
  const std::string header = header_of(tensors);
  const std::uint64_t length = header.size();
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(&length), sizeof length);
  file << header;
  for (const auto& [name, tensor] : tensors) {
    const at::Tensor values = tensor.detach().contiguous().to(at::kCPU);
    file.write(static_cast<const char*>(values.const_data_ptr()), static_cast<std::streamsize>(values.nbytes()));
  }
  file.close();
  check(!file.fail(), "safetensors: cannot write ", path);
}

}  // namespace forge::app
