// One JSON object read field by field: a missing field, one of another type and one that nobody asked for are errors.
#pragma once

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "error.hpp"

namespace posecrafter {

using Json = nlohmann::ordered_json;

class Fields {
  public:
    // `where` names the object in errors, `code` is theirs.
    Fields(const Json& object, std::string where, const char* code = "bundle-manifest")
        : object_(object), where_(std::move(where)), code_(code) {
        if (!object.is_object()) refuse("is not an object");
    }

    const Json& at(const std::string& name) {
        known_.push_back(name);
        const auto found = object_.find(name);
        if (found == object_.end()) refuse("lacks the field '" + name + "'");
        return *found;
    }

    bool has(const std::string& name) {
        known_.push_back(name);
        return object_.contains(name);
    }

    std::string string(const std::string& name) {
        const Json& value = at(name);
        if (!value.is_string()) refuse("has a field '" + name + "' that is not a text");
        return value.get<std::string>();
    }

    // A whole number from `low` to `high`.
    std::int64_t whole(const std::string& name, std::int64_t low, std::int64_t high) {
        const Json& value = at(name);
        const bool fits = value.is_number_unsigned() ? value.get<std::uint64_t>() <= std::uint64_t(high)
                                                     : value.is_number_integer() && value.get<std::int64_t>() <= high;
        if (!fits || value.get<std::int64_t>() < low)
            refuse(text("has a field '", name, "' that is not a whole number from ", low, " to ", high));
        return value.get<std::int64_t>();
    }

    double number(const std::string& name) {
        const Json& value = at(name);
        if (!value.is_number()) refuse("has a field '" + name + "' that is not a number");
        return value.get<double>();
    }

    bool flag(const std::string& name) {
        const Json& value = at(name);
        if (!value.is_boolean()) refuse("has a field '" + name + "' that is not true or false");
        return value.get<bool>();
    }

    // An object, of nothing where there is none.
    const Json& object(const std::string& name) {
        static const Json empty = Json::object();
        if (!has(name)) return empty;
        const Json& value = object_.at(name);
        if (!value.is_object()) refuse("has a field '" + name + "' that is not an object");
        return value;
    }

    // To be called after the last field: refuses names that were never asked for.
    void done() const {
        for (const auto& item : object_.items())
            if (std::find(known_.begin(), known_.end(), item.key()) == known_.end())
                refuse("has an unknown field '" + item.key() + "'");
    }

    [[noreturn]] void refuse(const std::string& what) const {
        throw Error(Kind::bundle, code_, where_ + " " + what + "; export it again");
    }

  private:
    const Json& object_;
    std::string where_;
    const char* code_;
    std::vector<std::string> known_;
};

}  // namespace posecrafter
